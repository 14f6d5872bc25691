//! `cargo xtask deps`: the rules of this repository that the compiler does not check.
//!
//! In: the crates' manifests and sources. Out: every violation, with what to do about it. The rules
//! are who may depend on whom, where `unsafe` may be, and that each file says what it is for.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::{Package, Workspace};

/// What one crate may depend on.
struct Rule {
    krate: &'static str,
    /// Crates of ours.
    ours: &'static [&'static str],
    /// Crates of ours in tests only, on top of those.
    tests: &'static [&'static str],
    /// Crates of others; `None` is any.
    theirs: Option<&'static [&'static str]>,
}

const fn rule(krate: &'static str, ours: &'static [&'static str]) -> Rule {
    Rule { krate, ours, tests: &[], theirs: None }
}

/// Everything that `daemon` is put together from.
const BELOW_DAEMON: &[&str] = &[
    "model",
    "api",
    "agent-proto",
    "agent-client",
    "vmm",
    "net",
    "kernel",
    "image",
    "disk",
    "snapshot",
    "pager",
    "store",
];

/// What `xtask` builds, measures and checks with.
const FOR_XTASK: &[&str] = &[
    "model",
    "api",
    "agent-proto",
    "agent-client",
    "vmm",
    "kernel",
    "image",
    "disk",
    "snapshot",
    "store",
    "simulated",
];

/// The arrows. Adapters meet in `daemon` and nowhere else.
const RULES: &[Rule] = &[
    Rule { krate: "model", ours: &[], tests: &[], theirs: Some(&["ipnet", "serde", "thiserror"]) },
    rule("api", &["model"]),
    rule("agent-proto", &[]),
    Rule { krate: "agent", ours: &["agent-proto"], tests: &["agent-client", "kernel"], theirs: None },
    rule("agent-client", &["model", "agent-proto"]),
    Rule { krate: "vmm", ours: &["model"], tests: &["simulated"], theirs: None },
    rule("net", &["model"]),
    rule("kernel", &["model"]),
    rule("image", &["model"]),
    rule("disk", &["model"]),
    rule("snapshot", &["model"]),
    rule("pager", &["model"]),
    rule("store", &["model"]),
    // A double of a VMM, with the agent's double in it, and the guest that benches measure with.
    rule("simulated", &["agent-client"]),
    Rule { krate: "daemon", ours: BELOW_DAEMON, tests: &["simulated"], theirs: None },
    // The daemon for `hearth serve`; every other command speaks through the client in `api`.
    rule("cli", &["model", "api", "daemon"]),
    rule("e2e", &["model", "api", "daemon", "simulated"]),
    rule("xtask", FOR_XTASK),
];

/// Checks all rules.
pub fn run(workspace: &Workspace) -> Result<()> {
    let mut violations: Vec<String> = workspace.packages.iter().flat_map(broken_arrows).collect();
    let mut files = 0;
    for package in &workspace.packages {
        let dir = package.manifest_path.parent().context("a manifest lies in a directory")?;
        violations.extend(manifest_violation(&package.name, &read(&package.manifest_path)?));
        for path in sources(dir)? {
            files += 1;
            let text = read(&path)?;
            let shown = path.strip_prefix(&workspace.root).unwrap_or(&path);
            violations.extend(source_violations(shown, &text));
        }
    }
    if !violations.is_empty() {
        for violation in &violations {
            println!("{violation}");
        }
        bail!("{} violations of the rules in crates/xtask/src/deps.rs", violations.len());
    }
    println!("{} crates and {files} files keep the rules", workspace.packages.len());
    Ok(())
}

/// The dependencies of `package` that its rule does not name.
fn broken_arrows(package: &Package) -> Vec<String> {
    const OURS: &str = "hearth-";
    let krate = package.name.strip_prefix(OURS).unwrap_or(&package.name);
    let Some(rule) = RULES.iter().find(|rule| rule.krate == krate) else {
        return vec![format!("{krate}: has no rule: say in RULES what it may depend on")];
    };
    let mut broken = Vec::new();
    for dependency in &package.dependencies {
        let in_tests = dependency.kind.as_deref() == Some("dev");
        match dependency.name.strip_prefix(OURS) {
            // A crate turns on its own features for its tests.
            Some(name) if in_tests && name == krate => {}
            Some(name) if rule.ours.contains(&name) || (in_tests && rule.tests.contains(&name)) => {}
            Some(name) => {
                let may = if rule.ours.is_empty() { "no crate of ours".to_owned() } else { rule.ours.join(", ") };
                let tests = if in_tests { " in its tests" } else { "" };
                broken.push(format!("{krate}: depends on {name}{tests}, but may use {may}"));
            }
            None if in_tests => {}
            None => {
                if let Some(theirs) = rule.theirs.filter(|theirs| !theirs.contains(&dependency.name.as_str())) {
                    let (name, may) = (&dependency.name, theirs.join(", "));
                    broken.push(format!("{krate}: depends on {name}, but may use std, {may}"));
                }
            }
        }
    }
    broken
}

/// The lints of the workspace forbid `unsafe`; a crate that does not take them over escapes.
fn manifest_violation(name: &str, manifest: &str) -> Option<String> {
    let lints = manifest.split_once("[lints]").map_or("", |(_, after)| after);
    let inherits = lints.lines().skip(1).take_while(|line| !line.starts_with('[')).any(|line| {
        let line: String = line.split_whitespace().collect();
        line == "workspace=true"
    });
    (!inherits).then(|| format!("{name}: its manifest lacks `[lints] workspace = true`"))
}

/// The lint's name, written so that this file does not contain it.
const UNSAFE_LINT: &str = concat!("unsafe", "_code");

fn source_violations(path: &Path, text: &str) -> Vec<String> {
    let shown = path.display();
    let mut violations = Vec::new();
    if !text.starts_with("//!") {
        violations.push(format!("{shown}: must start with `//!`: what it is for, what goes in and out"));
    }
    // The compiler finds every use of the keyword; what it cannot know is where it may be allowed.
    if path.file_name() != Some("sys.rs".as_ref())
        && let Some((number, _)) = text.lines().enumerate().find(|(_, line)| line.contains(UNSAFE_LINT))
    {
        violations.push(format!("{shown}:{}: names {UNSAFE_LINT}: unsafe code belongs in a sys.rs", number + 1));
    }
    let in_src = path.components().any(|part| part.as_os_str() == "src");
    if in_src && path.file_name() == Some("mod.rs".as_ref()) {
        violations.push(format!("{shown}: must be called {shown}.rs, without mod").replace("/mod.rs.rs", ".rs"));
    }
    violations
}

/// All Rust files of a crate, sorted.
fn sources(dir: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("read directory {}", dir.display()))? {
            let path = entry.with_context(|| format!("read directory {}", dir.display()))?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension() == Some("rs".as_ref()) {
                found.insert(path);
            }
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, dependencies: &[(&str, Option<&str>)]) -> Package {
        let dependency = |(name, kind): &(&str, Option<&str>)| Dependency {
            name: (*name).to_owned(),
            kind: kind.map(str::to_owned),
        };
        Package {
            name: name.to_owned(),
            manifest_path: PathBuf::from("Cargo.toml"),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    #[test]
    fn this_workspace_has_a_rule_for_each_crate() {
        let workspace = Workspace::load().expect("cargo metadata");
        for package in &workspace.packages {
            let krate = package.name.strip_prefix("hearth-").expect("named hearth-…");
            assert!(RULES.iter().any(|rule| rule.krate == krate), "{krate}");
        }
    }

    #[test]
    fn arrows_that_the_design_names_are_allowed() {
        let allowed = [
            package("hearth-model", &[("serde", None), ("proptest", Some("dev"))]),
            package("hearth-disk", &[("hearth-model", None), ("rustix", None), ("hearth-disk", Some("dev"))]),
            package("hearth-agent", &[("hearth-agent-proto", None), ("hearth-agent-client", Some("dev"))]),
            package("hearth-daemon", &[("hearth-disk", None), ("hearth-kernel", None)]),
        ];
        for package in allowed {
            assert_eq!(broken_arrows(&package), Vec::<String>::new());
        }
    }

    #[test]
    fn every_other_arrow_is_named_with_what_is_allowed() {
        let cases = [
            (
                package("hearth-model", &[("tokio", None)]),
                "model: depends on tokio, but may use std, ipnet, serde, thiserror",
            ),
            (package("hearth-disk", &[("hearth-image", None)]), "disk: depends on image, but may use model"),
            (
                package("hearth-vmm", &[("hearth-kernel", Some("dev"))]),
                "vmm: depends on kernel in its tests, but may use model",
            ),
            (
                package("hearth-agent", &[("hearth-agent-client", None)]),
                "agent: depends on agent-client, but may use agent-proto",
            ),
            (
                package("hearth-agent-proto", &[("hearth-model", Some("build"))]),
                "agent-proto: depends on model, but may use no crate of ours",
            ),
            (package("hearth-cli", &[("hearth-store", None)]), "cli: depends on store, but may use model, api, daemon"),
            (package("hearth-new", &[]), "new: has no rule: say in RULES what it may depend on"),
        ];
        for (package, message) in cases {
            assert_eq!(broken_arrows(&package), [message]);
        }
    }

    #[test]
    fn unsafe_is_allowed_in_sys_files_only() {
        let text = format!("//! About.\n#![allow({UNSAFE_LINT})]\n");
        assert!(source_violations(Path::new("crates/vmm/src/sys.rs"), &text).is_empty());
        assert_eq!(
            source_violations(Path::new("crates/vmm/src/process.rs"), &text),
            [format!("crates/vmm/src/process.rs:2: names {UNSAFE_LINT}: unsafe code belongs in a sys.rs")]
        );
        assert!(manifest_violation("hearth-x", "[lints]\nworkspace = true\n").is_none());
        assert!(manifest_violation("hearth-x", "[lints]\n\n[dependencies]\nworkspace = true\n").is_some());
    }

    #[test]
    fn files_say_what_they_are_for_and_are_named_for_it() {
        let path = Path::new("crates/vmm/src/qemu/mod.rs");
        let violations = source_violations(path, "use std::fs;\n");
        assert!(violations[0].starts_with("crates/vmm/src/qemu/mod.rs: must start with `//!`"), "{violations:?}");
        assert_eq!(violations[1], "crates/vmm/src/qemu/mod.rs: must be called crates/vmm/src/qemu.rs, without mod");
        assert!(source_violations(Path::new("crates/vmm/tests/support/mod.rs"), "//! Support.\n").is_empty());
    }
}
