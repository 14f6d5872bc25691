//! A bundle's manifest, checksums and mark.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_snapshot::stranger::manifest(bytes));
