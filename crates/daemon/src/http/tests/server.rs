//! The API on loopback, over a daemon without a host.

use std::collections::HashMap;
use std::sync::Arc;

use hearth_api::ErrorBody;
use hearth_api::client::{Client, ClientError};
use hearth_api::images::{Image, ImportImage};
use hearth_api::instances::{CreateInstance, Instance};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{Config, Secret};
use crate::serve::App;
use crate::world::World;

/// The image that a server has.
pub(super) const IMAGE: &str = "app";

pub(super) struct Server {
    pub(super) app: Arc<App>,
    pub(super) client: Client,
    address: String,
    dir: tempfile::TempDir,
    pub(super) world: World,
}

/// What came back, whole.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HashMap<String, String>,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn error(&self) -> ErrorBody {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no error body ({error}): {}", self.body))
    }
}

impl Server {
    /// One with an image, of which nobody needs a token.
    pub(super) async fn new() -> Self {
        let server = Self::empty(None).await;
        server.import(IMAGE).await.expect("imported");
        server
    }

    /// One without images; with a secret, tokens are asked for, and the client has one.
    pub(super) async fn empty(secret: Option<&str>) -> Self {
        Self::configured(secret, |_| {}).await
    }

    /// The same, with a configuration of its own.
    pub(super) async fn configured(secret: Option<&str>, configure: impl FnOnce(&mut Config)) -> Self {
        let world = World::new().await;
        let mut app = App::new(Arc::clone(&world.host), world.registry.clone());
        app.config.auth.token_secret = secret.map(Secret::new);
        configure(&mut app.config);
        let app = Arc::new(app);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(axum::serve(listener, crate::http::router(Arc::clone(&app))).into_future());
        let token = secret.map(|secret| crate::auth::sign(secret, r#"{"alg":"HS256"}"#, r#"{"sub":"test"}"#));
        let client = Client::new(&format!("http://{address}"), token.as_deref()).expect("an address");
        Self { app, client, address, dir: tempfile::tempdir().expect("a directory"), world }
    }

    /// Imports a root file system with one program in it.
    pub(super) async fn import(&self, name: &str) -> Result<Image, ClientError> {
        let root = self.dir.path().join("root");
        std::fs::create_dir_all(root.join("bin")).expect("made");
        std::fs::write(root.join("bin/app"), "app").expect("written");
        let path = root.to_str().expect("UTF-8").to_owned();
        self.client.import_image(&ImportImage { path, name: name.into(), tags: None }).await
    }

    /// What `create` is asked for at least: the image has no command of its own.
    pub(super) fn wanted(name: &str) -> CreateInstance {
        CreateInstance {
            image: IMAGE.into(),
            name: name.into(),
            cmd: Some(vec!["/bin/app".into()]),
            overlay_size: Some("64MB".into()),
            ..CreateInstance::default()
        }
    }

    pub(super) async fn create(&self, name: &str) -> Instance {
        self.client.create_instance(&Self::wanted(name)).await.expect("created")
    }

    /// Sends exactly that, and reads the answer to its end.
    pub(super) async fn raw(&self, head: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut stream = TcpStream::connect(&self.address).await.expect("connected");
        let mut text = format!("{head} HTTP/1.1\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            text.push_str(&format!("host: {}\r\n", self.address));
        }
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        // The answer may come before all of a body is taken.
        stream.write_all(format!("{text}\r\n{body}").as_bytes()).await.ok();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("readable");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        Answer { status: status.expect("a status"), headers, body: body.to_owned() }
    }

    pub(super) async fn send(&self, head: &str, body: &str) -> Answer {
        self.raw(head, &[("content-type", "application/json")], body).await
    }
}
