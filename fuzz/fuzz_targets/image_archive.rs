//! An archive that somebody imports: an OCI layout, a `docker save`, a root file system.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_image::stranger::archive(bytes));
