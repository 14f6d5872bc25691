//! A layer whose headers have the right checksums.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_image::stranger::layer(bytes));
