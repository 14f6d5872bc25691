//! What a guest says on its channel, and what a host says to an agent.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hearth_agent_proto::stranger::stream(bytes));
