//! `cargo xtask demo`: one service, from an OCI image to ten forks, as a user would type it.
//!
//! In: a Debian machine with a Rust toolchain, and root the first time. Out: what was typed, what
//! came of it, and a table of what it took. Installs what is missing, builds, and keeps the image
//! for the next run; everything else that it makes is gone when it ends, however it ends.

mod image;
mod place;
mod report;
mod session;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::build;
use crate::daemon::Daemon;
use crate::demo::place::Place;
use crate::demo::report::{Report, Way};
use crate::demo::session::{Counted, Session};
use crate::interrupt::Interrupt;
use crate::setup;
use crate::workspace::Workspace;

const FORKS: u64 = 10;

/// Shows it.
pub fn run(workspace: &Workspace) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let done = prepare_and_show(workspace, &interrupt);
    // Whatever failed, it failed because of that.
    interrupt.check()?;
    done
}

fn prepare_and_show(workspace: &Workspace, interrupt: &Interrupt) -> Result<()> {
    let mut report = Report::default();
    let place = Place::take(workspace.target.join("demo"))?;
    let kernel = workspace.target.join("hearth-kernel");

    title("What this machine needs");
    report.step("packages and guest kernel", || {
        setup::ensure_packages(&[setup::RUN, setup::MAKE_IMAGES])?;
        setup::ensure_kernel(&kernel)
    })?;
    interrupt.check()?;

    title("Building Hearth");
    let hearth = report.step("build", || build::hearth(workspace, true))?;
    interrupt.check()?;

    title("An image: a minimal Debian, and on it a Python web service with a counter in memory");
    let layout = report.step("make the image", || image::ensure(place.root()))?;
    interrupt.check()?;

    let shown = show(workspace, &place, &hearth, &kernel, &layout, interrupt, &mut report);
    if shown.is_err() && interrupt.check().is_ok() {
        let kept = place.keep_logs()?;
        eprintln!("\nthe logs of the daemon and of its instances are in {}", kept.display());
    }
    drop(place);
    shown?;

    title("What it took");
    print!("{report}");
    what_next(workspace, &hearth, &layout);
    Ok(())
}

/// As one would type it in the workspace's root.
fn shown(workspace: &Workspace, path: &Path) -> String {
    path.strip_prefix(&workspace.root).unwrap_or(path).display().to_string()
}

fn title(text: &str) {
    println!("\n== {text}");
}

/// From a daemon's start to its end.
fn show(
    workspace: &Workspace,
    place: &Place,
    hearth: &Path,
    kernel: &Path,
    layout: &Path,
    interrupt: &Interrupt,
    report: &mut Report,
) -> Result<()> {
    title("A daemon, and an instance of the image");
    let data = place.data();
    let [hearth_shown, data_shown, kernel_shown] = [hearth, &data, kernel].map(|path| shown(workspace, path));
    println!("$ HEARTH_KERNEL_DIR={kernel_shown} {hearth_shown} serve --data-dir {data_shown} --listen 127.0.0.1:0 &");
    let settings = [("HEARTH_KERNEL_DIR", kernel.as_os_str().to_owned())];
    let daemon = report.step("start the daemon", || Daemon::start(hearth, &data, &settings))?;
    println!("$ export HEARTH_URL={}", daemon.url());
    let mut session = Session { daemon: &daemon, workspace, interrupt, report };
    story(&mut session, layout)?;
    title("Cleaning up");
    let names: Vec<String> = forks().map(|(_, name)| name).chain(["counter".into()]).collect();
    let rm = ["rm", "-f"].into_iter().chain(names.iter().map(String::as_str)).collect::<Vec<_>>();
    session.step("remove all eleven", &rm)?;
    session.hearth(&["image", "rm", "counter"])?;
    Ok(())
}

/// The forks, by number and name.
fn forks() -> impl Iterator<Item = (u64, String)> {
    (1..=FORKS).map(|number| (number, format!("fork-{number}")))
}

fn story(session: &mut Session<'_>, layout: &Path) -> Result<()> {
    let layout = shown(session.workspace, layout);
    session.step("import the image", &["image", "import", &layout, "--name", "counter"])?;
    let boot = session.step("boot: until the instance runs", &["run", "--name", "counter", "counter"])?;
    let answer = session.ask("boot: then until the service answers", "counter", 1)?;
    expect(&answer.counted, "counter", 1)?;
    session.report.way(Way {
        what: "cold boot",
        command: boot,
        service: boot + answer.took,
        operation: session.operation("counter")?,
    });
    expect(&session.ask("ask it twice more", "counter", 2)?.counted, "counter", 3)?;

    title("Standby: its memory becomes a file, its process ends");
    session.step("standby", &["standby", "counter"])?;
    session.hearth(&["ps"])?;

    title("Restore: it goes on where it was");
    let restore = session.step("restore: until the instance runs", &["restore", "counter"])?;
    let answer = session.ask("restore: then until the service answers", "counter", 1)?;
    expect(&answer.counted, "counter", 4)?;
    session.report.way(Way {
        what: "restore",
        command: restore,
        service: restore + answer.took,
        operation: session.operation("counter")?,
    });

    title("Ten forks of the running instance, and each counts on by itself");
    let count = FORKS.to_string();
    let fork = session.step("fork ten: until all run", &["fork", "counter", "fork", "--count", &count])?;
    let mut answers = Vec::new();
    let mut asking = Duration::ZERO;
    let mut operations = Vec::new();
    for (number, name) in forks() {
        // Each is asked once more often than the one before it, so that no two have the same sum.
        let answer = session.ask_quietly(&name, number)?;
        expect(&answer.counted, &name, 4 + number)?;
        asking += answer.took;
        answers.push(answer.counted);
        operations.push(session.operation(&name)?);
    }
    session.report.add("fork ten: until each service has answered", fork + asking);
    operations.sort();
    let median = *operations.get(operations.len() / 2).context("ten forks have a median")?;
    let each = |all: Duration| all / u32::try_from(FORKS).unwrap_or(1);
    let (command, service) = (each(fork), each(fork + asking));
    session.report.way(Way { what: "fork, each of the ten", command, service, operation: median });
    let source = session.ask("ask their source", "counter", 1)?.counted;
    expect(&source, "counter", 5)?;
    session.hearth(&["ps"])?;
    answers.push(source);
    println!("\nall had counted to 4 when they were one; then each was asked by itself:");
    print!("{}", report::answers(&answers));
    Ok(())
}

fn expect(counted: &Counted, hostname: &str, counter: u64) -> Result<()> {
    ensure!(
        counted.hostname == hostname && counted.counter == counter,
        "the service says {counted:?}, but {hostname} should have counted to {counter}"
    );
    Ok(())
}

fn what_next(workspace: &Workspace, hearth: &Path, layout: &Path) {
    let bin = shown(workspace, hearth.parent().unwrap_or(hearth));
    println!("\nWhat to type next:");
    println!("  export PATH=$PWD/{bin}:$PATH");
    println!("  hearth doctor --fix                       # gets the guest kernel for your own daemon");
    println!("  hearth serve &                            # http://127.0.0.1:4973, data in /var/lib/hearth");
    println!("  hearth image import {} --name counter", shown(workspace, layout));
    println!("  hearth run --name web counter             # boots it");
    println!("  hearth exec web -- ask                    # asks it");
    println!("  hearth fork web copy --count 10           # ten more");
    println!("  hearth --help");
}
