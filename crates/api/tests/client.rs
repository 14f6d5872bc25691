//! The client against servers that are not there, or not ours.

use hearth_api::client::{Client, ClientError};
use hearth_model::{ErrorKind, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A server that answers one request with exactly that.
async fn answering(answer: &'static str) -> Client {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let client = Client::new(&format!("http://{}", listener.local_addr().expect("bound")), None).expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut request = [0; 4096];
        let read = stream.read(&mut request).await.expect("a request");
        assert!(read > 0);
        stream.write_all(answer.as_bytes()).await.expect("written");
    });
    client
}

#[tokio::test]
async fn nobody_there_is_told_apart_from_a_refusal() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    drop(listener);
    let error = Client::new(&url, None).expect("an address").health().await.expect_err("nobody");
    assert!(matches!(error, ClientError::NotReachable { .. }), "{error:?}");
    assert!(error.to_string().contains(&url) && error.hint().is_some_and(|hint| hint.contains("hearth serve")));
}

#[tokio::test]
async fn a_refusal_keeps_the_servers_words() {
    let client = answering(
        "HTTP/1.1 409 Conflict\r\nconnection: close\r\n\r\n\
         {\"code\":\"busy\",\"message\":\"standby is under way\",\"hint\":\"wait for it\"}",
    )
    .await;
    let error = client.stop("web").await.expect_err("refused");
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::Busy, "standby is under way"));
    assert_eq!(error.hint().as_deref(), Some("wait for it"));
}

#[tokio::test]
async fn what_is_not_hearths_is_said_to_be_so() {
    let proxy = answering("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 9\r\n\r\nno luck\r\n").await;
    let error = proxy.health().await.expect_err("refused").to_string();
    assert!(error.contains("502") && error.contains("no luck"), "{error}");

    let other = answering("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello").await;
    assert!(matches!(other.health().await, Err(ClientError::Strange { .. })));

    let cut = answering("HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"stat").await;
    assert!(matches!(cut.health().await, Err(ClientError::Lost { .. })));
}
