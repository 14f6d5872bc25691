//! Snapshots: what is written where, and what of it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use hearth_simulated::guest::MARK;
use serde_json::json;

use crate::host::{Lab, MEMORY_LEN, names, on_disk};

const PAGE: u64 = 4096;

pub async fn a_running_guest_is_not_saved(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    let (vmstate, memory) = (vmm.dir.join("vmstate"), vmm.dir.join("memory"));
    for kind in ["Diff", "Full"] {
        vmm.save(kind, &vmstate, &memory).await.refused(
            "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable \
             while running",
        );
    }
    assert!(!vmstate.exists() && !memory.exists());
    let tick = vmm.tick();
    vmm.ticks_beyond(tick).await;
}

pub async fn a_diff_into_a_new_file_holds_what_was_touched_and_loads_alone(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    vmm.ticks_beyond(3).await;
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    assert_eq!(names(&bundle.dir), ["memory", "vmstate"]);
    assert_eq!(fs::metadata(bundle.memory()).expect("there").len(), MEMORY_LEN);
    let (touched, most) = (u64::from(lab.params.pages) * PAGE, u64::from(lab.params.pages + 100) * PAGE);
    let disk = on_disk(&bundle.memory());
    assert!((touched..most).contains(&disk), "{disk} bytes for {touched} that were touched");
    assert_marks(&lab, &bundle.memory(), bundle.tick);
    vmm.kill().await;
    let vmm = lab.restore("fork", &bundle).await;
    vmm.ticks_beyond(bundle.tick).await;
    assert_eq!(vmm.ticks()[0], bundle.tick + 1);
}

pub async fn a_second_diff_of_an_untracked_guest_holds_everything_again(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    let first = lab.save(&mut vmm, "first", "Diff").await;
    vmm.resume().await.done();
    vmm.ticks_beyond(first.tick).await;
    let second = lab.save(&mut vmm, "second", "Diff").await;
    assert!(second.tick > first.tick);
    assert!(on_disk(&second.memory()) >= on_disk(&first.memory()));
    assert_marks(&lab, &second.memory(), second.tick);
    let vmm = lab.restore("fork", &second).await;
    vmm.ticks_beyond(second.tick).await;
}

pub async fn a_second_diff_of_a_tracked_guest_holds_what_changed(lab: Lab) {
    let mut vmm = lab.boot_with("web", json!({ "track_dirty_pages": true })).await;
    let first = lab.save(&mut vmm, "first", "Diff").await;
    assert_marks(&lab, &first.memory(), first.tick);
    // Nothing has run since: nothing is in it, and so it loads with zeroes.
    let none = lab.save(&mut vmm, "none", "Diff").await;
    assert_eq!(on_disk(&none.memory()), 0);
    vmm.resume().await.done();
    vmm.ticks_beyond(first.tick).await;
    let second = lab.save(&mut vmm, "second", "Diff").await;
    let disk = on_disk(&second.memory());
    let most = (second.tick - first.tick + 1) * u64::from(lab.params.per_tick) + 20;
    assert!(disk > 0 && disk <= most * PAGE, "{disk} bytes for {} ticks", second.tick - first.tick);
    assert!(disk < on_disk(&first.memory()));
}

pub async fn a_full_snapshot_holds_every_byte(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    let bundle = lab.save(&mut vmm, "bundle", "Full").await;
    // A file in many pieces has a block for the list of them, too.
    let disk = on_disk(&bundle.memory());
    assert!((MEMORY_LEN..MEMORY_LEN + 16 * PAGE).contains(&disk), "{disk} bytes");
    assert_marks(&lab, &bundle.memory(), bundle.tick);
    let vmm = lab.restore("fork", &bundle).await;
    vmm.ticks_beyond(bundle.tick).await;
}

pub async fn what_cannot_be_written_is_refused_and_the_guest_goes_on(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    vmm.pause().await.done();
    let (vmstate, memory, nowhere) = (vmm.dir.join("vmstate"), vmm.dir.join("memory"), vmm.dir.join("no/where"));
    let none = "No such file or directory (os error 2)";
    let refusal = format!("Create snapshot error: Cannot perform open on the snapshot backing file: {none}");
    vmm.save("Diff", &nowhere, &memory).await.refused(&refusal);
    assert!(!memory.exists());
    let refusal = format!("Create snapshot error: Cannot perform open on the memory backing file: {none}");
    vmm.save("Diff", &vmstate, &nowhere).await.refused(&refusal);
    assert!(vmstate.exists(), "the state is written first");
    assert_eq!(vmm.state().await, "Paused");
    vmm.save("Diff", &vmstate, &memory).await.done();
    let tick = vmm.tick();
    vmm.resume().await.done();
    vmm.ticks_beyond(tick).await;
}

pub async fn a_file_of_another_length_is_written_anew_and_one_of_the_same_is_merged_into(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    let dir = lab.path("bundle");
    fs::create_dir(&dir).expect("made");
    fs::write(dir.join("vmstate"), "x".repeat(1 << 20)).expect("written");
    let untouched = MEMORY_LEN - PAGE;
    for (len, kept) in [(MEMORY_LEN, "old"), (MEMORY_LEN + PAGE, "\0\0\0"), (MEMORY_LEN - 1, "\0\0\0")] {
        let file = File::create(dir.join("memory")).expect("made");
        file.set_len(len).expect("sized");
        file.write_all_at(b"old", untouched).expect("written");
        let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
        assert_eq!(fs::metadata(bundle.memory()).expect("there").len(), MEMORY_LEN);
        assert_eq!(at(&bundle.memory(), untouched, 3), kept.as_bytes(), "of {len} bytes");
        assert_marks(&lab, &bundle.memory(), bundle.tick);
        assert!(fs::metadata(bundle.vmstate()).expect("there").len() < 1 << 20, "the state is written anew");
    }
}

pub async fn paths_are_in_the_state_as_they_were_given(lab: Lab) {
    let bundle = lab.bundle().await;
    let state = fs::read(bundle.vmstate()).expect("there");
    let has = |text: &str| state.windows(text.len()).any(|bytes| bytes == text.as_bytes());
    assert!(has("disks/rootfs") && has("disks/overlay.img") && has("vsock.sock"));
    assert!(!has(lab.path("source").to_str().expect("text")), "nothing of where it was");
}

/// That a memory file has every page of the guest in it, none touched later than `tick`.
#[track_caller]
pub fn assert_marks(lab: &Lab, memory: &Path, tick: u64) {
    for page in 0..lab.params.pages {
        assert!(has_mark(lab, memory, page), "page {page} is not in it");
        let touched = word(memory, lab.params.address(page) + 8);
        // The last tick may have touched its pages and not yet printed itself.
        assert!(touched <= tick + 1, "page {page} was touched at {touched}, after {tick}");
    }
}

/// Whether a page of the guest is in a memory file.
pub fn has_mark(lab: &Lab, memory: &Path, page: u32) -> bool {
    word(memory, lab.params.address(page)) == MARK + u64::from(page)
}

fn word(file: &Path, offset: u64) -> u64 {
    u64::from_le_bytes(at(file, offset, 8).try_into().expect("eight bytes"))
}

fn at(file: &Path, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    File::open(file).expect("there").read_exact_at(&mut bytes, offset).expect("read");
    bytes
}
