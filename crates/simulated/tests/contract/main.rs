//! What Firecracker 1.16.1 promises at its API, told as stories that run alike on the simulated VMM
//! (`simulated::…`) and on the real one (`firecracker::…`): where they differ, one of them fails.
//!
//! The real part needs Firecracker on PATH or in `HEARTH_FIRECRACKER`, a `/dev/kvm` that opens, and
//! gcc for its guest; it says SKIPPED on stderr where they are missing. Neither needs root.

mod before;
mod forks;
mod host;
mod load;
mod process;
mod run;
mod save;
mod vsock;

macro_rules! on_both {
    ($($chapter:ident: $($story:ident),* $(,)?;)*) => {
        mod simulated {
            $($(#[tokio::test]
            async fn $story() {
                super::$chapter::$story(super::host::Lab::simulated()).await;
            })*)*
        }

        mod firecracker {
            $($(#[tokio::test]
            async fn $story() {
                if let Some(lab) = super::host::Lab::firecracker() {
                    super::$chapter::$story(lab).await;
                }
            })*)*
        }
    };
}

on_both!(
    before:
        it_tells_what_it_is_before_it_is_told_anything,
        what_cannot_be_opened_is_refused_when_it_is_named,
        a_machine_that_cannot_be_is_refused,
        an_unknown_field_is_refused_with_the_known_ones,
        what_is_no_request_is_refused,
        nothing_that_needs_a_machine_is_done_before_the_start,
        without_a_kernel_nothing_starts,
        a_vsock_that_is_named_again_moves;
    run:
        a_guest_boots_and_counts,
        what_runs_tells_its_configuration_as_it_was_given,
        nothing_that_belongs_before_the_start_is_done_after_it,
        pausing_and_resuming_again_change_nothing,
        a_drive_is_changed_while_it_runs_and_not_to_what_is_not_there,
        a_guest_without_a_driver_leaves_its_callers_waiting,
        keys_that_nobody_reads_do_nothing,
        a_guest_that_halts_goes_on_halting_after_a_load,
        a_guest_that_spins_is_paused_and_saved_too;
    save:
        a_running_guest_is_not_saved,
        a_diff_into_a_new_file_holds_what_was_touched_and_loads_alone,
        a_second_diff_of_an_untracked_guest_holds_everything_again,
        a_second_diff_of_a_tracked_guest_holds_what_changed,
        a_full_snapshot_holds_every_byte,
        what_cannot_be_written_is_refused_and_the_guest_goes_on,
        a_file_of_another_length_is_written_anew_and_one_of_the_same_is_merged_into,
        paths_are_in_the_state_as_they_were_given;
    load:
        a_guest_that_is_resumed_in_the_load_goes_on_where_it_stood,
        a_second_resume_is_no_error,
        a_guest_that_is_loaded_paused_waits_for_its_resume,
        relative_paths_are_opened_where_the_new_one_works,
        the_console_goes_on_in_the_file_that_was_named_before,
        a_console_that_is_there_is_written_over_from_its_beginning,
        after_a_start_nothing_is_loaded_and_the_guest_goes_on,
        after_boot_configuration_nothing_is_loaded_and_the_process_lives,
        a_stale_vsock_socket_ends_it,
        a_missing_drive_ends_it,
        what_is_not_there_ends_it,
        a_truncated_memory_ends_it,
        a_damaged_state_ends_it,
        an_unknown_device_ends_it,
        an_unknown_field_does_not_end_it,
        the_vsock_can_be_moved,
        a_drive_is_changed_before_the_resume,
        the_wall_clock_is_had_or_refused,
        state_and_memory_of_two_moments_load_and_are_torn,
        the_old_way_of_naming_the_memory_is_deprecated;
    forks:
        forks_run_side_by_side_and_leave_their_bundle_as_it_was,
        forks_of_a_paused_source_run_beside_it,
        a_tracked_fork_writes_only_what_it_changed_onto_a_clone,
        an_untracked_fork_s_diff_is_whole_on_a_clone_only,
        a_fork_of_a_fork_goes_on,
        a_fork_has_another_tap_beside_its_living_source,
        a_loaded_guest_is_saved_before_it_ever_ran;
    vsock:
        a_guest_that_listens_is_called_on_its_port_only,
        connections_do_not_outlast_a_snapshot_and_learn_it_when_they_speak,
        a_loaded_guest_is_called_anew,
        a_caller_between_load_and_resume_is_answered_and_may_be_lost,
        a_bare_pause_and_resume_hangs_it_and_a_snapshot_heals_it,
        a_resume_of_a_guest_that_runs_hangs_it;
    process:
        it_says_its_version,
        what_it_does_not_know_ends_it_at_once,
        an_invalid_id_aborts_it,
        a_socket_that_is_taken_or_cannot_be_ends_it,
        killed_it_leaves_its_sockets,
        a_request_that_is_too_large_is_refused_and_the_next_is_served,
        it_takes_several_connections,
        the_eleventh_connection_is_refused;
);
