//! The stories that the lab tells: this is the one list of them.
//!
//! In: names, or parts of them. Out: the script that tells them one after another on the lab's
//! host, and marks where each begins and ends.

use std::time::Duration;

use anyhow::{Result, bail};

/// A test in one of the lab's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Story {
    /// As the test's program names it.
    pub name: &'static str,
    /// The program.
    pub program: &'static str,
    /// Whether `cargo xtask ci` tells it.
    pub quick: bool,
}

const fn story(name: &'static str) -> Story {
    Story { name, program: "stories", quick: false }
}

const fn quick(name: &'static str) -> Story {
    Story { name, program: "stories", quick: true }
}

/// The agent alone, on a bare Firecracker.
const fn of_agent(name: &'static str) -> Story {
    Story { name, program: "agent-tests", quick: false }
}

/// All of them, from what must work for the rest to what needs most.
pub const ALL: &[Story] = &[
    of_agent("a_guest_is_reached_over_vsock_from_boot_to_end"),
    of_agent("a_guest_that_is_saved_and_goes_on_is_reached_again"),
    of_agent("a_restored_guest_answers_a_new_host_over_vsock"),
    of_agent("a_fork_is_refreshed_in_hardly_more_than_a_bare_answer_takes"),
    quick("boot::an_image_boots_answers_and_logs"),
    story("boot::a_program_that_ends_stops_its_instance"),
    story("boot::a_program_runs_as_its_image_says"),
    story("boot::an_instance_gets_the_memory_and_processors_it_asks_for"),
    story("boot::files_outlive_stop_and_start"),
    story("exec::input_goes_in_and_much_output_comes_out"),
    story("exec::a_terminal_has_a_size_that_changes"),
    story("exec::a_command_ends_with_its_caller_or_its_time"),
    story("exec::signals_reach_the_command"),
    quick("standby::a_program_goes_on_counting_where_it_stood"),
    story("standby::files_are_as_they_were_left"),
    story("standby::the_clock_is_right_after_a_long_sleep"),
    story("snapshots::an_instance_goes_back_to_its_snapshot"),
    story("snapshots::forks_outlive_all_that_they_came_from"),
    quick("fork::ten_forks_share_a_past_and_no_future"),
    quick("fork::a_running_instance_is_forked_and_runs_on"),
    story("fork::a_fork_is_saved_and_forked_again"),
    story("fork::forks_are_not_each_other"),
    story("fork::a_fork_rests_where_it_is_told_to"),
    story("fork::a_stopped_instance_is_forked_by_its_disk"),
    story("identity::eight_forks_at_once_are_each_themselves"),
    story("identity::a_fork_whose_hook_fails_is_not_made_and_the_hook_is_named"),
    story("identity::a_stopped_fork_boots_as_itself"),
    story("network::a_service_is_forked_and_each_fork_is_reached_as_itself"),
    quick("network::an_instance_keeps_its_address_and_its_old_connections_end"),
    story("network::connections_outlive_a_daemon_that_crashes"),
    story("network::guests_are_kept_from_each_other_and_from_the_host"),
    story("network::guests_find_each_other_by_name_where_they_may"),
    story("network::a_published_port_leads_to_its_instance_and_to_no_other"),
    story("network::what_may_leave_is_what_was_asked_for"),
    story("daemon::instances_outlive_a_daemon_that_crashes"),
    story("daemon::an_end_that_nobody_saw_is_found_afterwards"),
    story("daemon::a_vmm_that_is_killed_stops_its_instance"),
    story("daemon::a_daemon_that_is_asked_to_end_drains"),
    story("daemon::what_a_crash_cuts_off_leaves_nothing"),
    story("cut_off::standby_and_what_leads_out_of_it_have_happened_or_not"),
    story("cut_off::a_fork_is_there_or_not"),
    story("at_once::an_instance_that_comes_up_is_busy"),
    story("at_once::ten_callers_restore_one_instance"),
];

/// What programs in the lab are told of it. Limits in time are made for guests that QEMU
/// translates; the lab is some four times slower still.
pub const ENVIRONMENT: &str = "\
export HEARTH_BIN=/lab/bin/hearth HEARTH_FIRECRACKER=/lab/bin/firecracker HEARTH_TEST_KERNEL_DIR=/lab/kernel
export HEARTH_TEST_HYPERVISOR=firecracker HEARTH_TEST_SLOWNESS=4 HEARTH_TEST_MUST_RUN=1
export HEARTH_AGENT=/lab/bin/hearth-agent HEARTH_TEST_EVIDENCE_DIR=/lab/logs RUST_BACKTRACE=1
";

const BEGIN: &str = "@lab begin";
const END: &str = "@lab end";
/// May stand anywhere in what a story prints.
pub const ALIVE: &str = "@lab alive";

/// A line that the script prints beside what stories say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mark<'a> {
    /// A story begins.
    Begin(&'a str),
    /// It has ended, with this exit status.
    End(&'a str, i32),
}

impl Story {
    /// How long it may take.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(900)
    }
}

/// Those whose names contain one of `parts`; all if there is none.
pub fn matching(parts: &[String]) -> Result<Vec<&'static Story>> {
    for part in parts {
        if !ALL.iter().any(|story| story.name.contains(part.as_str())) {
            bail!("no story of the lab has {part:?} in its name; there are:\n{}", names().join("\n"));
        }
    }
    let wanted = |story: &&Story| parts.is_empty() || parts.iter().any(|part| story.name.contains(part.as_str()));
    Ok(ALL.iter().filter(wanted).collect())
}

fn names() -> Vec<&'static str> {
    ALL.iter().map(|story| story.name).collect()
}

/// What the lab's host runs: these stories, in this order. A story that hangs is ended, and with it
/// what it has left running. Every few seconds it says that the host lives.
pub fn script(environment: &str, stories: &[&Story]) -> String {
    let mut script = environment.to_owned();
    script += "\
(while sleep 5; do echo '@lab alive'; done) &
told() {
    echo \"@lab begin $2\"
    timeout --kill-after=10 \"$3\" \"/lab/bin/$1\" --exact --nocapture --test-threads 1 \"$2\"
    status=$?
    pkill -KILL -x hearth
    pkill -KILL -x firecracker
    echo \"@lab end $2 $status\"
}
";
    for story in stories {
        script += &format!("told {} {} {}\n", story.program, story.name, story.limit().as_secs());
    }
    script
}

/// What this line marks, if it does.
pub fn mark(line: &str) -> Option<Mark<'_>> {
    if let Some(name) = line.strip_prefix(BEGIN) {
        return Some(Mark::Begin(name.trim()));
    }
    let (name, status) = line.strip_prefix(END)?.trim().rsplit_once(' ')?;
    Some(Mark::End(name, status.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_story_of_the_list_is_told_somewhere() {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for story in ALL {
            let (file, name) = match story.name.split_once("::") {
                Some((chapter, name)) => (format!("e2e/tests/stories/{chapter}.rs"), name),
                None => ("agent/tests/firecracker.rs".to_owned(), story.name),
            };
            let text = fs::read_to_string(crates.join(file)).expect("a chapter");
            assert!(
                text.contains(&format!("\nfn {name}()")) || text.contains(&format!("\nasync fn {name}()")),
                "{name}"
            );
        }
    }

    #[test]
    fn the_script_marks_each_story() {
        let chosen = matching(&["ten_forks".to_owned()]).expect("there is one");
        let script = script(ENVIRONMENT, &chosen.repeat(3));
        assert_eq!(script.matches("told stories fork::ten_forks_share_a_past_and_no_future 900\n").count(), 3);
        assert_eq!(mark("@lab begin a::b"), Some(Mark::Begin("a::b")));
        assert_eq!(mark("@lab end a::b 101"), Some(Mark::End("a::b", 101)));
        assert_eq!(mark("test a::b ... ok"), None);
        matching(&["no such story".to_owned()]).expect_err("none");
    }
}
