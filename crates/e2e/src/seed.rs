//! Where the chances of a story come from: a number that is printed, and can be given again.

/// `HEARTH_TEST_SEED`; another one each time where it is not set.
///
/// # Panics
/// If `HEARTH_TEST_SEED` is no number.
#[must_use]
pub fn seed() -> u64 {
    match std::env::var("HEARTH_TEST_SEED") {
        Ok(text) => text.parse().expect("HEARTH_TEST_SEED is a number"),
        Err(_) => fastrand::u64(..1 << 32),
    }
}
