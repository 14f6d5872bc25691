//! What a Firecracker answers, over HTTP and on its vsock socket.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_vmm::stranger::answer(bytes));
