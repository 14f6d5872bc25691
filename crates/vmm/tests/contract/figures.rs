//! How long things take. Not a check: `cargo test -p hearth-vmm -- --ignored figures --nocapture`.

use std::time::{Duration, Instant};

use hearth_model::{Backend, LoadPlan};
use hearth_vmm::{Loaded, OVERLAY, SaveMemory};

use crate::host::{Host, copy_sparse, ready};

/// Median, smallest and largest, in ms.
pub fn spread(mut took: Vec<Duration>) -> String {
    took.sort();
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    let (least, median, most) = (took[0], took[took.len() / 2], took[took.len() - 1]);
    format!("{:.1} ms ({:.1} to {:.1}), {} times", ms(median), ms(least), ms(most), took.len())
}

#[tokio::test]
#[ignore = "measures"]
async fn figures_of_qemu_microvm() {
    measure(Backend::QemuMicrovm).await;
}

#[tokio::test]
#[ignore = "measures"]
async fn figures_of_qemu_q35() {
    measure(Backend::Qemu).await;
}

async fn measure(backend: Backend) {
    let Some(host) = Host::real(backend) else { return };
    let (mut boot, mut save) = (Vec::new(), Vec::new());
    let mut bundle = None;
    for _ in 0..5 {
        let begin = Instant::now();
        let vmm = host.boot("base").await;
        ready(&vmm).await;
        boot.push(begin.elapsed());
        vmm.pause().await.expect("pauses");
        let begin = Instant::now();
        vmm.save("vmstate".as_ref(), SaveMemory::Leave).await.expect("saved");
        save.push(begin.elapsed());
        bundle = Some(host.save(&vmm, "bundle", None).await);
        vmm.kill().await.expect("ends");
    }
    let bundle = bundle.expect("saved");
    let (mut loaded, mut running, mut answered) = (Vec::new(), Vec::new(), Vec::new());
    let (mut paused, mut saved, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    let onto = bundle.state.memory.with_file_name("onto");
    for _ in 0..20 {
        let spec = host.spec("fork");
        std::fs::copy(&bundle.overlay, spec.dir.join(OVERLAY)).expect("copied");
        copy_sparse(&bundle.state.memory, &onto);
        let begin = Instant::now();
        let Ok(Loaded::Paused(vmm)) = host.launcher.load(&spec, &bundle.state, &LoadPlan::LoadResume).await else {
            panic!("loads")
        };
        loaded.push(begin.elapsed());
        vmm.resume().await.expect("resumes");
        running.push(begin.elapsed());
        let mut guest = ready(&vmm).await;
        answered.push(begin.elapsed());
        guest.ask("dirty 300").await;
        let time = |into: &mut Vec<Duration>, begin: Instant| into.push(begin.elapsed());
        let begin = Instant::now();
        vmm.pause().await.expect("pauses");
        time(&mut paused, begin);
        let begin = Instant::now();
        let pages = vmm.save("vmstate".as_ref(), SaveMemory::Onto(&onto)).await.expect("saved").pages;
        time(&mut saved, begin);
        let begin = Instant::now();
        vmm.kill().await.expect("ends");
        time(&mut ended, begin);
        if saved.len() == 20 {
            eprintln!("{backend}: {pages:?}");
        }
    }
    for (what, took) in [
        ("boot to the first answer", boot),
        ("save of a booted guest", save),
        ("load to loaded", loaded),
        ("load to running", running),
        ("load to the first answer", answered),
        ("pause", paused),
        ("save of a fork", saved),
        ("kill", ended),
    ] {
        eprintln!("{backend}: {what}: {}", spread(took));
    }
}
