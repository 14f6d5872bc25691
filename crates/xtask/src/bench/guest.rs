//! The guest channel for the floor: shake hands, ask for a sign of life.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hearth_agent_proto::{CONTROL, Decoder, Encoder, ToGuest, ToHost, VERSION};

/// A guest under TCG boots in some seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until the guest's agent has answered.
pub fn ping(mut stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
    let mut epoch = [0; 8];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut epoch)).context("draw an epoch")?;
    let epoch = u64::from_le_bytes(epoch);

    let (mut encoder, mut request) = (Encoder::default(), Vec::new());
    encoder.encode(&mut request, epoch, CONTROL, &ToGuest::Hello { version: VERSION }, &[])?;
    encoder.encode(&mut request, epoch, CONTROL + 1, &ToGuest::Ping, &[])?;
    stream.write_all(&request).context("ask the agent")?;

    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).context("hear from the agent")?;
        ensure!(length > 0, "the guest channel ended");
        let mut input = &buffer[..length];
        while let Some(frame) = decoder.next(&mut input) {
            if frame.epoch != epoch {
                continue;
            }
            match frame.message().context("read the agent's answer")?.0 {
                ToHost::Pong => return Ok(()),
                ToHost::Refused { version } => bail!("the agent speaks version {version}, and we {VERSION}"),
                _ => {}
            }
        }
    }
}
