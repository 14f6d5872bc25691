//! What the daemon's log says of an error: once, with its chain, by whoever handles it.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_api::instances::InstanceState;
use hearth_model::{ErrorKind, Kind};

use super::server::Server;
use crate::ops::faults::{How, When};

/// What was logged at WARN or ERROR.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Listens on this thread, where a test's tasks run too.
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::WARN)
            .with_ansi(false)
            .with_writer(move || log.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The lines since the last time.
    fn take(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn an_operation_that_fails_is_logged_once_with_what_failed() {
    let log = Log::default();
    let server = Server::new().await;
    server.create("web").await;
    let _listening = log.listen();

    // In a step.
    server.app.host.faults.set(Some((0, When::Before, How::Error)));
    assert_eq!(server.client.standby("web").await.expect_err("planned").kind(), ErrorKind::HostFailed);
    server.app.host.faults.set(None);
    let lines = log.take();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("ERROR") && lines[0].contains("standby: begin bundle: planned failure"), "{}", lines[0]);

    // Outside of any operation.
    let images = server.app.host.data.images();
    std::fs::remove_dir_all(&images).expect("removed");
    std::fs::write(&images, "no directory").expect("written");
    assert_eq!(server.import("other").await.expect_err("nowhere to put it").kind(), ErrorKind::HostFailed);
    let lines = log.take();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("ERROR") && lines[0].contains("request failed"), "{}", lines[0]);

    // Refused: no one's failure.
    assert_eq!(server.client.start("web").await.expect("it runs").state, InstanceState::Running);
    assert_eq!(server.client.restore("nope").await.expect_err("refused").kind(), ErrorKind::NotFound);
    assert_eq!(log.take(), [""; 0]);
}

/// What a bug cuts off is not undone, so the instance stays, says so, and can be deleted.
#[tokio::test]
async fn a_bug_in_an_operation_is_logged_once_and_leaves_an_instance_that_says_so() {
    let log = Log::default();
    let server = Server::new().await;
    let _listening = log.listen();
    server.app.host.faults.set(Some((2, When::After, How::Panic)));
    let failed = server.client.create_instance(&Server::wanted("web")).await.expect_err("planned");
    server.app.host.faults.set(None);
    assert_eq!(failed.kind(), ErrorKind::Internal);
    let lines: Vec<String> = log.take().into_iter().filter(|line| line.contains(" ERROR ")).collect();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("planned bug") && lines[0].contains("left behind"), "{}", lines[0]);

    let web = server.client.instance("web").await.expect("it is still there");
    assert_eq!(web.state, InstanceState::Unknown);
    assert!(web.state_error.expect("it says why").contains("planned bug"));
    let figures = super::exposition::read(&server).await;
    assert_eq!(figures.sum("hearth_operations_total", &[("op", "create"), ("result", "internal")]), 1.0);
    assert_eq!(figures.sum("hearth_instances", &[("state", "failed")]), 1.0);
    server.client.delete_instance("web", &hearth_api::instances::DeleteInstance::default()).await.expect("deleted");
    assert_eq!(std::fs::read_dir(server.app.host.data.instances()).expect("listed").count(), 0);
}
