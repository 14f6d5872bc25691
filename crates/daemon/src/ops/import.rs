//! Import: a snapshot of a guest that plain Firecracker saved. What its state names is asked of
//! Firecracker itself, which loads it paused in a directory of its own and is ended again. Memory,
//! state and every drive are cloned; of what is imported nothing is written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_model::foreign::{ForeignGuest, NamedDrive, NoPair, Seen, guess, take_over};
use hearth_model::spec::Program;
use hearth_model::{
    Backend, ByteSize, ErrorKind, InstanceId, InstanceName, InstanceSpec, Kind, MemMib, SnapshotId, error::io_kind,
};
use hearth_store::{SnapshotKind, SnapshotRecord};
use hearth_vmm::{SavedState, StateFormat};

use super::bundle::{self, Source, Use};
use crate::error::OpError;
use crate::host::{Host, end_vmm};
use crate::registry::random;
use crate::reservations::Promise;
use crate::run::{Run, blocking};

/// What is imported, and as what.
#[derive(Debug, Clone)]
pub(crate) struct ImportPlan {
    /// The directory that Firecracker wrote. An absolute path.
    pub(crate) dir: PathBuf,
    /// The state in it, if it is not obvious.
    pub(crate) vmstate: Option<String>,
    /// The memory in it, if it is not obvious.
    pub(crate) memory: Option<String>,
    pub(crate) name: InstanceName,
    /// Whether Hearth's agent runs in the guest.
    pub(crate) agent: bool,
    pub(crate) tags: BTreeMap<String, String>,
}

/// The name of nobody, whose snapshots imported ones are.
const NOBODY: &str = "imported";
/// Bytes that every state of Firecracker's begins with, or has a few bytes on, whatever the
/// architecture. Source: its `snapshot/mod.rs`.
const STATE_MAGIC: [u8; 4] = [0x84, 0x19, 0x10, 0x07];
const STATE_HEAD: u64 = 16;

/// The files that are imported.
#[derive(Debug)]
struct Pair {
    vmstate: PathBuf,
    memory: PathBuf,
    size: MemMib,
}

pub(crate) async fn import(host: &Arc<Host>, plan: &ImportPlan, run: &mut Run) -> Result<SnapshotRecord, OpError> {
    host.check_backend(Backend::Firecracker)?;
    run.step("look for the name", async { free(host, &plan.name) }).await?;
    let wanted = plan.clone();
    let pair = run.step("look for state and memory", blocking(move || find(&wanted))).await?;
    let _space = run.step("look for room", async { room(host, &pair) }).await?;

    let scratch = host.data.import(&SnapshotId::from_entropy(random()?));
    run.undo("import directory", remove(scratch.path()));
    let (dir, source) = (scratch.disks(), plan.dir.clone());
    run.step("make directory", blocking(move || make(&dir, &source))).await?;
    run.undo("vmm", end_vmm(Arc::clone(host), scratch.clone(), None));
    let from =
        SavedState { vmstate: pair.vmstate.clone(), memory: pair.memory.clone(), format: StateFormat::Firecracker };
    let spec = specification(plan, pair.size);
    let asked = async { host.inspect(&scratch, &spec, &from).await.map_err(explain) };
    let described = run.step("ask what it names", asked).await?;
    let agent = plan.agent;
    let guest = run.step("decide", async { take_over(described, pair.size.size(), agent) }).await?;
    run.step("remove directory", remove(scratch.path())).await?;
    tracing::info!(
        snapshot = %plan.name, drives = guest.state.drives.len(), vsock = guest.state.vsock,
        named_as_here = guest.state.is_named_as_here(), "a state from elsewhere: what it names is replaced at each load"
    );

    let draft = bundle::begin(host, run).await?;
    for (step, from, to) in [
        ("clone state", pair.vmstate, draft.path(hearth_snapshot::VMSTATE)),
        ("clone memory", pair.memory, draft.path(hearth_snapshot::MEMORY)),
    ] {
        let how = run.step(step, blocking(move || hearth_disk::clone_file(&from, &to))).await?;
        run.note(format!("{how:?}"));
    }
    let mut writable = 0;
    for drive in &guest.state.drives {
        let (drive, from, to) = (drive.clone(), plan.dir.join(&drive.path), draft.path(&drive.id.path()));
        writable += run.step("clone drive", blocking(move || clone_drive(&drive, &from, &to))).await?;
    }

    let ForeignGuest { state, vcpus, memory } = guest;
    let spec = InstanceSpec {
        vcpus,
        memory,
        overlay: ByteSize(writable),
        foreign: Some(state.devices()),
        ..specification(plan, memory)
    };
    let source = Source {
        instance: nobody(),
        name: spec.name.clone(),
        spec,
        image_digest: String::new(),
        base: None,
        foreign: Some(state),
    };
    let purpose =
        Use { kind: SnapshotKind::Standby, name: Some(plan.name.clone()), tags: plan.tags.clone(), internal: false };
    let saved = bundle::publish(host, source, draft, purpose, Some(StateFormat::Firecracker), run).await?;
    run.commit();
    host.settler.later(&saved.id);
    Ok(saved)
}

/// Space for the guest's memory, or for records alone where copies share it. Drives are known only to
/// the state.
fn room(host: &Host, pair: &Pair) -> Result<Promise, OpError> {
    let bytes = host.room.of_clones(std::iter::once(pair.memory.clone()));
    host.room.for_import(bytes).map_err(|full| OpError::new(full.kind(), full.to_string()).hinted(full.hint()))
}

/// The instance that imported snapshots are of: none has this id, so their names are unique among
/// each other.
fn nobody() -> InstanceId {
    InstanceId::from_entropy([0; 16])
}

/// Whether a snapshot was imported, and so is of no instance.
pub(crate) fn is_imported(snapshot: &SnapshotRecord) -> bool {
    snapshot.source_instance == nobody()
}

/// A name that leads to one snapshot.
fn free(host: &Host, name: &InstanceName) -> Result<(), OpError> {
    let taken = host.store.listed_snapshots()?.into_iter().find(|snapshot| snapshot.name.as_ref() == Some(name));
    taken.map_or(Ok(()), |snapshot| {
        Err(OpError::new(
            ErrorKind::AlreadyExists,
            format!("snapshot {} of {} has the name {name}", snapshot.id, snapshot.source_name),
        )
        .hinted("choose another name, or remove that snapshot"))
    })
}

/// What is imported, before it is known what it is.
fn specification(plan: &ImportPlan, memory: MemMib) -> InstanceSpec {
    InstanceSpec {
        name: NOBODY.parse().expect("it is a name"),
        image: format!("localhost/imported/{}", plan.name).parse().expect("a name is the end of a reference"),
        backend: Backend::Firecracker,
        memory,
        vcpus: 1,
        overlay: ByteSize(0),
        network: None,
        agent: plan.agent,
        tags: plan.tags.clone(),
        env: BTreeMap::new(),
        restart: hearth_model::RestartPolicy::default(),
        program: Program { argv: Vec::new(), env: Vec::new(), workdir: "/".into(), user: String::new() },
        foreign: None,
    }
}

/// Finds state and memory.
fn find(plan: &ImportPlan) -> Result<Pair, OpError> {
    let dir = &plan.dir;
    let invalid = |what: String| OpError::new(ErrorKind::Invalid, what);
    let name_them = "name them with --vmstate and --memory (\"vmstate\" and \"memory\" in a request)";
    let meta = dir.metadata().map_err(|error| cannot("look at", dir, &error))?;
    if !meta.is_dir() {
        return Err(invalid(format!("{} is not a directory", dir.display()))
            .hinted("name the directory that holds the files that Firecracker wrote"));
    }
    let files = match (&plan.vmstate, &plan.memory) {
        (Some(_), Some(_)) => Vec::new(),
        _ => list(dir).map_err(|error| cannot("list", dir, &error))?,
    };
    let pair = guess(&files, plan.vmstate.clone(), plan.memory.clone());
    let (vmstate, memory) =
        pair.map_err(|problem: NoPair| invalid(format!("{}: {problem}", dir.display())).hinted(name_them))?;
    let (vmstate, memory) = (dir.join(vmstate), dir.join(memory));
    file(&vmstate)?;
    let bytes = ByteSize(file(&memory)?);
    let size = MemMib::from_size(bytes).map_err(|error| {
        invalid(format!("{} is not the whole memory of a guest that can be run: {error}", memory.display()))
            .hinted("copy it again if it was cut short, or name another file with --memory")
    })?;
    Ok(Pair { vmstate, memory, size })
}

/// The length of a file that can be read.
fn file(path: &Path) -> Result<u64, OpError> {
    let meta = File::open(path).and_then(|file| file.metadata()).map_err(|error| cannot("read", path, &error))?;
    if meta.is_file() {
        return Ok(meta.len());
    }
    Err(OpError::new(ErrorKind::Invalid, format!("{} is not a file", path.display())).hinted("name a regular file"))
}

fn cannot(action: &str, path: &Path, error: &io::Error) -> OpError {
    let (kind, hint) = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            (ErrorKind::NotFound, "paths are those of the daemon's host; look for a slip of the pen")
        }
        io::ErrorKind::PermissionDenied => (io_kind(error), "let the daemon's user read it"),
        _ => (io_kind(error), "look at the host's log"),
    };
    OpError::new(kind, format!("{action} {}: {error}", path.display())).hinted(hint)
}

fn list(dir: &Path) -> io::Result<Vec<Seen>> {
    let mut files = Vec::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // A link to a file is as good as the file.
        let Ok(meta) = entry.path().metadata() else { continue };
        if meta.is_file() {
            files.push(Seen { name, bytes: meta.len(), is_state: is_state(&entry.path()) });
        }
    }
    Ok(files)
}

/// A file that cannot be read is no state; it is named when it is wanted for one.
fn is_state(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path).and_then(|file| file.take(STATE_HEAD).read_to_end(&mut head));
    read.is_ok() && head.windows(STATE_MAGIC.len()).any(|window| window == STATE_MAGIC)
}

/// Makes the directory in which a VMM looks at the state. Relative paths in it are those of the
/// directory that is imported, which is seen through links.
fn make(disks: &Path, source: &Path) -> Result<(), OpError> {
    let Some(dir) = disks.parent() else { return Ok(()) };
    std::fs::create_dir_all(dir).map_err(|error| cannot("make", dir, &error))?;
    let entries = source.read_dir().map_err(|error| cannot("list", source, &error))?;
    for entry in entries.flatten() {
        // What a VMM makes itself is its own.
        let link = dir.join(entry.file_name());
        if hearth_vmm::MADE.iter().any(|made| dir.join(made) == link) {
            continue;
        }
        std::os::unix::fs::symlink(entry.path(), &link).map_err(|error| cannot("make", &link, &error))?;
    }
    Ok(())
}

fn remove(dir: &Path) -> impl Future<Output = Result<(), OpError>> + Send + 'static {
    let dir = dir.to_owned();
    // Links in it are removed, not what they lead to.
    blocking(move || hearth_disk::remove(&dir))
}

/// Clones a drive; its length, if the guest writes to it.
fn clone_drive(drive: &NamedDrive, from: &Path, to: &Path) -> Result<u64, OpError> {
    hearth_disk::clone_file(from, to).map_err(|error| {
        let hint = error.hint().unwrap_or_else(|| format!("the guest's state names it as {}", drive.path));
        let error = OpError::from_kind(&error);
        OpError { message: format!("drive {}: {}", drive.id, error.message), ..error }.hinted(hint)
    })?;
    use std::os::unix::fs::PermissionsExt;
    let private = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(to, private).map_err(|error| cannot("change", to, &error))?;
    let bytes = to.metadata().map_err(|error| cannot("measure", to, &error))?.len();
    Ok(if drive.read_only { 0 } else { bytes })
}

/// What to do about what Firecracker says, in whose words the reason is.
fn explain(error: OpError) -> OpError {
    let hint = [
        ("Invalid data version", "another version of Firecracker saved it: import it where that one is installed"),
        ("CRC64", "the state file is damaged: copy it again"),
        ("bitcode", "the state file is damaged, or is no state of Firecracker's: copy it again"),
        ("too short", "the state file was cut short: copy it again"),
        ("possible file offset", "the memory file is shorter than the guest's memory: copy it again, or name another"),
        ("backing file", "a drive that the state names is not there: put it where its path says, and import again"),
        ("tap device", "the guest has a network interface, which is not taken over yet: save it without"),
    ];
    let found = hint.into_iter().find(|(word, _)| error.message.contains(word));
    match found {
        Some((_, hint)) => error.hinted(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_known_by_how_it_begins() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = |name: &str, bytes: &[u8]| {
            std::fs::write(dir.path().join(name), bytes).expect("written");
        };
        // As Firecracker 1.16 and as its predecessors write it.
        file("state", &[0, 0, 0, 0x64, 0x86, 0x84, 0x19, 0x10, 0x07, 6, b'1', b'0', b'.', b'0']);
        file("older", &[0, 0, 0x64, 0x86, 0x84, 0x19, 0x10, 0x07, 1]);
        file("mem", &[0; 64]);
        file("short", &[0x84]);
        let mut seen: Vec<_> = list(dir.path()).expect("listed").into_iter().map(|f| (f.name, f.is_state)).collect();
        seen.sort();
        let wanted = [("mem", false), ("older", true), ("short", false), ("state", true)];
        assert_eq!(seen, wanted.map(|(name, is_state)| (name.to_owned(), is_state)));
    }
}
