//! What a guest asks for names, and what a name server says.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_net::stranger::packet(bytes));
