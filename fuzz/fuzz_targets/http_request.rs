//! A body, a query, a first frame or a token that somebody sends to the API.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_daemon::stranger::request(bytes));
