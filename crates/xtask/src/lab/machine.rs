//! The lab's host, running: QEMU, what it prints, and how its job ended.
//!
//! In: images, a job as a shell script. Out: each line that the job prints, its exit status, and in
//! `logs/` the host's console, the job's output and whatever it left in `/lab/logs`.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::debian;
use crate::lab::images::Images;
use crate::process;

/// Sparse: what is not written takes nothing.
const DATA_BYTES: u64 = 24 << 30;
const SECTOR: usize = 512;

/// What the host does before it ends.
#[derive(Debug)]
pub struct Job {
    /// Run by `sh`.
    pub script: String,
    /// Whether it has our terminal, instead of a reader.
    pub terminal: bool,
    /// After this the host is ended.
    pub limit: Duration,
    /// A job that prints now and then whatever happens: after so long without a word, its host has
    /// hung.
    pub silence: Option<Duration>,
}

/// How a host came to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Its job is done, with this exit status.
    Done(i32),
    /// Its kernel stood still or panicked, as a translated one with guests of its own does now and
    /// then: how that was seen.
    Broke(String),
}

/// Starts the host, and waits until its job is done. What `show` makes of a line is printed.
pub fn run(images: &Images, place: &Path, job: &Job, mut show: impl FnMut(&str) -> Option<String>) -> Result<Ended> {
    let files = Files::prepare(place, job)?;
    let mut command = qemu(images, &files, job.terminal);
    let began = Instant::now();
    let mut child = command.spawn().with_context(|| format!("start `{}`", process::line(&command)))?;
    let (watchdog, watched) = watchdog(&child, job.limit, job.silence);
    if let Some(printed) = child.stdout.take() {
        copy_lines(printed, &files.logs.join("output.log"), &watchdog, &mut show)?;
    }
    let ended = child.wait().context("wait for QEMU")?;
    drop(watchdog);
    let hung = watched.join().unwrap_or(false);
    unpack(&files)?;
    fs::remove_file(&files.data).with_context(|| format!("remove {}", files.data.display()))?;
    if hung {
        return Ok(Ended::Broke("it stood still".into()));
    }
    let told = fs::read_to_string(&files.status).with_context(|| format!("read {}", files.status.display()))?;
    match told.trim().parse() {
        Ok(status) => Ok(Ended::Done(status)),
        Err(_) => {
            let said = fs::read_to_string(&files.console).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            Ok(Ended::Broke(format!(
                "it ended after {} s without a word on its job (QEMU: {ended}); its console's end:\n{}",
                began.elapsed().as_secs(),
                lines[lines.len().saturating_sub(20)..].join("\n")
            )))
        }
    }
}

/// Files of one run.
#[derive(Debug)]
struct Files {
    job: PathBuf,
    data: PathBuf,
    status: PathBuf,
    archive: PathBuf,
    console: PathBuf,
    logs: PathBuf,
}

impl Files {
    /// Empty, but for the job.
    fn prepare(place: &Path, job: &Job) -> Result<Self> {
        let (run, logs) = (place.join("run"), place.join("logs"));
        for dir in [&run, &logs] {
            debian::remove(dir)?;
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        let files = Self {
            job: run.join("job"),
            data: run.join("data.img"),
            status: run.join("status"),
            archive: run.join("logs.tar"),
            console: logs.join("console.log"),
            logs,
        };
        let mut script = job.script.clone().into_bytes();
        script.resize(script.len().next_multiple_of(SECTOR).max(SECTOR), 0);
        fs::write(&files.job, script).with_context(|| format!("write {}", files.job.display()))?;
        let data = File::create(&files.data).with_context(|| format!("make {}", files.data.display()))?;
        data.set_len(DATA_BYTES).with_context(|| format!("size {}", files.data.display()))?;
        Ok(files)
    }
}

/// QEMU's command line. The kernel is given as an ELF file to the smallest firmware: nothing of it
/// is unpacked or probed by translated code.
fn qemu(images: &Images, files: &Files, terminal: bool) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    let mut put = |option: &str, value: String| {
        command.arg(option).arg(value);
    };
    put("-machine", "microvm,x-option-roms=off,rtc=on".into());
    put("-bios", "qboot.rom".into());
    put("-global", "virtio-mmio.force-legacy=false".into());
    // `max` has SVM with nested paging: the host's kvm-amd finds hardware that it can use.
    put("-accel", "tcg,thread=multi".into());
    put("-cpu", "max".into());
    // The first for its kernel alone (see start.sh), two for what is run there.
    put("-smp", "3".into());
    put("-m", "6G".into());
    put("-kernel", images.vmlinux.display().to_string());
    put("-initrd", images.initrd.display().to_string());
    // Without the hints the kernel measures an emulated clock against another, and at times never
    // ends doing so.
    let hints =
        format!("tsc_early_khz={} no_timer_check tsc=reliable pci=off cryptomgr.notests mitigations=off", tsc_khz());
    put("-append", format!("console=ttyS0 loglevel=4 reboot=t panic=-1 {hints}"));
    let disks = [
        ("root", &images.root, true),
        ("programs", &images.programs, true),
        ("kernel", &images.kernel, true),
        ("job", &files.job, true),
        ("data", &files.data, false),
    ];
    for (name, path, read_only) in disks {
        let access = if read_only { "readonly=on" } else { "cache=unsafe,discard=unmap" };
        put("-drive", format!("if=none,id={name},format=raw,file={},{access}", comma_safe(path)));
        put("-device", format!("virtio-blk-device,drive={name},serial={name}"));
    }
    put("-chardev", format!("file,id=serial,path={}", comma_safe(&files.console)));
    put("-serial", "chardev:serial".into());
    put("-device", "virtio-serial-device".into());
    // What is not for people's eyes gets no terminal: nothing is coloured, and no line redrawn. (Not
    // by `stdio` either: the end of our empty input would close the port.)
    let (chardev, device) = if terminal {
        ("stdio,id=output,signal=off", "virtconsole,chardev=output")
    } else {
        ("file,id=output,path=/dev/stdout", "virtserialport,chardev=output,name=lab.output")
    };
    put("-chardev", chardev.into());
    put("-device", device.into());
    for (name, path) in [("status", &files.status), ("logs", &files.archive)] {
        put("-chardev", format!("file,id={name},path={}", comma_safe(path)));
        put("-device", format!("virtserialport,chardev={name},name=lab.{name}"));
    }
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    if !terminal {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
    }
    command
}

/// A comma ends a value for QEMU, two are one.
fn comma_safe(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Translated code reads the time stamp counter of this machine.
fn tsc_khz() -> u64 {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz = cpuinfo.lines().find(|line| line.starts_with("cpu MHz")).and_then(|line| line.split(':').nth(1));
    let (whole, fraction) = mhz.map_or("2000", str::trim).split_once('.').unwrap_or(("2000", "0"));
    whole.parse().unwrap_or(2000) * 1000 + fraction.get(..3).and_then(|khz| khz.parse::<u64>().ok()).unwrap_or(0)
}

/// Ends QEMU when the limit is over, or when nothing was heard of it for too long; until the sender,
/// which is told of each line, is dropped. Whether the host has hung.
fn watchdog(child: &Child, limit: Duration, silence: Option<Duration>) -> (mpsc::Sender<()>, JoinHandle<bool>) {
    let (sender, heard) = mpsc::channel();
    let (pid, began) = (Pid::from_child(child), Instant::now());
    let watching = thread::spawn(move || {
        loop {
            let left = limit.saturating_sub(began.elapsed());
            let wait = silence.unwrap_or(Duration::MAX).min(left);
            match heard.recv_timeout(wait) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {
                    let hung = wait < left;
                    match hung {
                        true => eprintln!("the lab's host has not said a word for {} s: ending it", wait.as_secs()),
                        false => eprintln!("the lab did not end within {} s: ending it", limit.as_secs()),
                    }
                    kill_process(pid, Signal::KILL).ok();
                    return hung;
                }
            }
        }
    });
    (sender, watching)
}

fn copy_lines(
    printed: ChildStdout,
    log: &Path,
    heard: &mpsc::Sender<()>,
    show: &mut impl FnMut(&str) -> Option<String>,
) -> Result<()> {
    let mut log = File::create(log).with_context(|| format!("make {}", log.display()))?;
    for bytes in BufReader::new(printed).split(b'\n') {
        let bytes = bytes.context("read what the lab's host prints")?;
        // Nobody listens when QEMU is being ended.
        heard.send(()).ok();
        let line = String::from_utf8_lossy(&bytes);
        writeln!(log, "{}", line.trim_end()).context("write output.log")?;
        if let Some(shown) = show(line.trim_end()) {
            println!("{shown}");
        }
    }
    Ok(())
}

fn unpack(files: &Files) -> Result<()> {
    let archive = File::open(&files.archive).with_context(|| format!("open {}", files.archive.display()))?;
    if archive.metadata().is_ok_and(|about| about.len() > 0) {
        let unpacked = tar::Archive::new(archive).unpack(&files.logs);
        unpacked.with_context(|| format!("unpack the lab's logs to {}", files.logs.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_job_fills_whole_sectors_and_the_last_run_is_forgotten() {
        let place = tempfile::tempdir().expect("a directory");
        let job = |script: &str| Job { script: script.into(), terminal: false, limit: Duration::MAX, silence: None };
        let files = Files::prepare(place.path(), &job("true")).expect("made");
        assert_eq!(fs::metadata(&files.job).expect("there").len(), 512);
        fs::write(&files.status, "0").expect("written");
        let files = Files::prepare(place.path(), &job(&"x".repeat(513))).expect("made");
        assert_eq!(fs::metadata(&files.job).expect("there").len(), 1024);
        assert!(!files.status.exists());
    }

    #[test]
    fn the_time_stamp_counter_s_rate_is_believable() {
        assert!((500_000..10_000_000).contains(&tsc_khz()), "{}", tsc_khz());
    }
}
