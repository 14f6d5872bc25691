//! How a saved guest is brought back: whether it may run before the load returns.
//!
//! A guest must never run before everything that it can see is its own. What a VMM's state names by
//! paths relative to its directory is in place before the load, so such a guest may be resumed
//! inside it. What a state names by absolute paths is somebody else's until it has been replaced,
//! which is possible only between load and resume.

use std::fmt;

/// Whether guests are resumed inside the load where that is possible: the escape hatch
/// `firecracker.resume_on_load`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResumeOnLoad {
    /// As is usual.
    #[default]
    On,
    /// Every guest is loaded paused, and resumed by a second request.
    Off,
}

impl ResumeOnLoad {
    /// What a setting means: `0`, `false`, `no` and `off` turn it off; all else leaves it on, so
    /// that a slip of the pen costs nothing.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text.trim().to_ascii_lowercase().as_str() {
            "0" | "false" | "no" | "off" => Self::Off,
            _ => Self::On,
        }
    }
}

/// A drive that is put in the place of the one that a state names.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DrivePatch {
    /// The drive, as the state names it.
    pub id: String,
    /// What takes its place, relative to the VMM's directory.
    pub path: String,
}

/// What of a state is replaced before its guest runs: at least one thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacements {
    drives: Vec<DrivePatch>,
    vsock: bool,
}

impl Replacements {
    /// `None` of nothing: then there is no reason to wait. `vsock`: whether the state has one.
    #[must_use]
    pub fn new(drives: Vec<DrivePatch>, vsock: bool) -> Option<Self> {
        (vsock || !drives.is_empty()).then_some(Self { drives, vsock })
    }

    /// The drives, in the order in which they are replaced.
    #[must_use]
    pub fn drives(&self) -> &[DrivePatch] {
        &self.drives
    }

    /// Whether there is a vsock, whose socket is the instance's own.
    #[must_use]
    pub const fn vsock(&self) -> bool {
        self.vsock
    }
}

/// How a load is carried out. A plan that resumes inside the load has nothing left to replace: the
/// wrong combination cannot be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadPlan {
    /// The guest runs when the load returns.
    ResumeOnLoad,
    /// Loaded paused, then resumed: the hatch is closed, or the VMM cannot do better.
    LoadResume,
    /// Loaded paused, its drives replaced by its own, then resumed.
    LoadPatchResume(Replacements),
}

impl LoadPlan {
    /// The name in timelines and metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::ResumeOnLoad => "resume_on_load",
            Self::LoadResume => "load_resume",
            Self::LoadPatchResume(_) => "load_patch_resume",
        }
    }
}

impl fmt::Display for LoadPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Decides. `can_resume_in_load`: of the VMM. `foreign`: what the state names that is not the
/// instance's own. A state that was saved here names nothing else, also of a guest that came from
/// elsewhere.
#[must_use]
pub fn load_plan(can_resume_in_load: bool, hatch: ResumeOnLoad, foreign: Option<Replacements>) -> LoadPlan {
    match (foreign, hatch, can_resume_in_load) {
        (Some(foreign), ResumeOnLoad::On | ResumeOnLoad::Off, _) => LoadPlan::LoadPatchResume(foreign),
        (None, ResumeOnLoad::On, true) => LoadPlan::ResumeOnLoad,
        (None, ResumeOnLoad::Off, _) | (None, ResumeOnLoad::On, false) => LoadPlan::LoadResume,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_these_words_close_the_hatch() {
        for off in ["0", "false", "no", "off", " OFF ", "False"] {
            assert_eq!(ResumeOnLoad::parse(off), ResumeOnLoad::Off, "{off:?}");
        }
        for on in ["", "1", "true", "yes", "on", "of", "nope", "00"] {
            assert_eq!(ResumeOnLoad::parse(on), ResumeOnLoad::On, "{on:?}");
        }
    }

    #[test]
    fn a_guest_with_foreign_drives_is_never_resumed_inside_the_load() {
        let patch = DrivePatch { id: "rootfs".into(), path: "disks/rootfs".into() };
        for can in [true, false] {
            for hatch in [ResumeOnLoad::On, ResumeOnLoad::Off] {
                for foreign in [(vec![patch.clone()], true), (vec![patch.clone()], false), (vec![], true)] {
                    let foreign = Replacements::new(foreign.0, foreign.1);
                    let plan = load_plan(can, hatch, foreign.clone());
                    let LoadPlan::LoadPatchResume(planned) = plan else { panic!("{can} {hatch:?}: {plan}") };
                    assert_eq!(Some(planned), foreign);
                }
            }
        }
    }

    #[test]
    fn a_guest_whose_files_are_in_place_resumes_inside_the_load_unless_the_hatch_is_closed() {
        assert_eq!(load_plan(true, ResumeOnLoad::On, None), LoadPlan::ResumeOnLoad);
        assert_eq!(load_plan(true, ResumeOnLoad::Off, None), LoadPlan::LoadResume);
        assert_eq!(load_plan(false, ResumeOnLoad::On, None), LoadPlan::LoadResume);
        assert_eq!(load_plan(false, ResumeOnLoad::Off, None), LoadPlan::LoadResume);
    }
}
