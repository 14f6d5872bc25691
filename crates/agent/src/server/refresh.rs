//! Becoming somebody: at first, and anew after every restore and fork.
//!
//! A refresh is done when it is answered, and nothing else is served before that. It goes from what
//! everybody in the guest sees at once to what runs programs of the image:
//!
//! ```text
//!   clock ─► randomness ─► host name ─► name servers, if they are others
//!     of a fork: SSH host keys
//!   ─► /run/hearth, the machine's id ─► names on the disk ─► hooks: on-fork.d, then on-restore.d
//! ```
//! What nobody needs who is not a hook is written right after the answer, before anything else that
//! the host asks: `/etc/hostname`, `/etc/hosts`, and the seeds for a later boot. Going to the disk
//! costs several times what all the rest does.
//!
//! Every error names the part. A hook for forks that fails, fails the refresh: what it should have
//! replaced may still be the source's. One for restores is told of, and the guest goes on: its
//! memory is its own, and there is no other way to it.

use std::time::{Duration, Instant};

use hearth_agent_proto::{FailureKind, GuestConfig, Refresh, RefreshPart, RefreshV1, Refreshed, ToHost};

use super::{Place, Server};
use crate::hooks::{self, When};
use crate::identity::{self, Identity, Published, disk, ssh};
use crate::note::note;
use crate::spawn::environment;
use crate::sys::Faults;
use crate::{network, users};

/// How long programs of the image may take when the host has not said: once to make SSH host keys,
/// of which RSA's are found by trying and take longest, and once as hooks.
const PATIENCE: Duration = Duration::from_secs(10);

/// What programs of the image did, beside becoming somebody.
#[derive(Debug, Default)]
struct Came {
    forked: bool,
    hooks: u32,
    complaints: Vec<String>,
}

/// Looks where a refresh will look: what the kernel has found once, or not found, it finds in its
/// memory after a restore, and does not ask the disk.
fn look_ahead() {
    let _ = (hooks::any(), ssh::host_keys(), disk::seeds().count());
}

impl Server {
    /// Takes a refresh, and answers it.
    pub(super) fn refresh(&mut self, channel: u32, refresh: Refresh) {
        let faults = Faults::so_far();
        let generation = refresh.generation;
        let renewed = self
            .set_the_clock(refresh.realtime_ns)
            .and_then(|began| self.renew(refresh, Some(channel)).map(|came| (began, came)));
        match renewed {
            Ok((began, Came { forked, hooks, complaints })) => {
                let faults = faults.since();
                complaints.iter().for_each(note);
                let refreshed = Refreshed {
                    generation,
                    forked,
                    took_us: u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX),
                    minor_faults: faults.minor,
                    major_faults: faults.major,
                    hooks,
                    complaints,
                };
                self.outbox.send(channel, &ToHost::Refreshed(refreshed), &[]);
            }
            Err(text) => self.outbox.fail(channel, FailureKind::Failed, text),
        }
    }

    /// The same for a host of version 1, which knows less of the guest.
    pub(super) fn refresh_v1(&mut self, channel: u32, old: RefreshV1) {
        let RefreshV1 { generation, realtime_ns, entropy, hostname, instance_id } = old;
        let (env, dns) = (self.env.clone(), Vec::new());
        let refresh = Refresh { generation, realtime_ns, entropy, hostname, instance_id, env, dns, hooks_ms: None };
        match self.set_the_clock(realtime_ns).and_then(|_| self.renew(refresh, None)) {
            Ok(came) => {
                came.complaints.iter().for_each(note);
                self.outbox.send(channel, &ToHost::RefreshedV1 { generation }, &[]);
            }
            Err(text) => self.outbox.fail(channel, FailureKind::Failed, text),
        }
    }

    /// A guest that has booted becomes what it is configured as, before its program starts.
    pub(super) fn become_first(&mut self, config: &GuestConfig) -> Result<(), String> {
        if let Some(failure) = &self.boot_failure {
            return Err(format!("the guest could not boot: {failure}"));
        }
        let identity = Identity {
            hostname: config.hostname.clone(),
            instance_id: config.instance_id.clone(),
            generation: 0,
            address: config.network.as_ref().map(|network| network.address),
        };
        if self.place == Place::Guest {
            identity::set_hostname(&identity.hostname)?;
            disk::write_names(&identity, &self.identity)?;
            let mut published = Published::open().map_err(|error| format!("publish the identity: {error}"))?;
            published.write(&identity)?;
            disk::show_machine_id(identity::MACHINE_ID)?;
            disk::write_machine_id(&identity::machine_id(&identity.instance_id))?;
            published.write_generation(&identity);
            self.published = Some(published);
            if let Some(network) = &config.network {
                network::configure(network)?;
            }
            disk::name_servers(&config.dns)?;
            let mut came = Came::default();
            // It was cloned without the memory that would know.
            if self.owner.as_ref().is_some_and(|owner| disk::is_of_another(owner, &identity.instance_id)) {
                disk::renew_seeds()?;
                self.fork(&identity, &config.program.env, PATIENCE, None, &mut came)?;
                self.run_hooks(When::Fork, &identity, &config.program.env, Instant::now() + PATIENCE, None, &mut came)?;
            }
            if let Some(owner) = &self.owner {
                disk::own(owner, &identity.instance_id)?;
            }
            came.complaints.iter().for_each(note);
            look_ahead();
        }
        self.identity = identity;
        Ok(())
    }

    /// Does what a refresh left for after its answer.
    pub(super) fn catch_up(&mut self) {
        let Some(old) = self.stale.take() else { return };
        let new = &self.identity;
        let mut done = vec![disk::write_names(new, &old)];
        if new.instance_id != old.instance_id {
            done.push(disk::renew_seeds());
            done.extend(self.owner.as_ref().map(|owner| disk::own(owner, &new.instance_id)));
        }
        done.into_iter().filter_map(Result::err).for_each(note);
    }

    /// Sets the clock to the host's, and says when: a guest that stands still before that is behind
    /// by as much, and its host must not take that for time that the refresh took.
    fn set_the_clock(&self, realtime_ns: u64) -> Result<Instant, String> {
        if self.place == Place::Guest && self.published.is_some() {
            identity::set_clock(realtime_ns)?;
        }
        Ok(Instant::now())
    }

    /// Becomes what a refresh says, but for the clock. `tell`: the channel on which the host hears what it has come to.
    fn renew(&mut self, refresh: Refresh, tell: Option<u32>) -> Result<Came, String> {
        let new = Identity {
            hostname: refresh.hostname,
            instance_id: refresh.instance_id,
            generation: refresh.generation,
            address: self.identity.address,
        };
        let mut came = Came { forked: new.instance_id != self.identity.instance_id, ..Came::default() };
        if self.place == Place::Elsewhere {
            self.take_env(refresh.env);
            self.identity = new;
            return Ok(came);
        }
        let Some(published) = &self.published else { return Err("the guest is not configured yet".to_owned()) };
        published.reseed(&refresh.entropy)?;
        if new.hostname != self.identity.hostname {
            identity::set_hostname(&new.hostname)?;
        }
        if self.config.as_ref().is_some_and(|config| config.dns != refresh.dns) {
            disk::name_servers(&refresh.dns)?;
        }
        let changes_env = refresh.env != self.env;
        self.take_env(refresh.env);
        let env = self.config.as_ref().map(|config| config.program.env.clone()).unwrap_or_default();
        let patience = refresh.hooks_ms.map_or(PATIENCE, |hooks_ms| Duration::from_millis(hooks_ms.into()));
        if came.forked {
            self.fork(&new, &env, patience, tell, &mut came)?;
        }
        if let Some(published) = &mut self.published {
            if changes_env {
                let user = self.config.as_ref().map_or("", |config| config.program.user.as_str());
                // A user that is not there has no program to read it.
                published.write_env(&self.env, users::find(user).map_or((0, 0), |user| (user.uid, user.gid)))?;
            }
            published.write(&new)?;
            if came.forked {
                disk::write_machine_id(&identity::machine_id(&new.instance_id))?;
            }
            published.write_generation(&new);
        }
        if let Some(dns) = self.config.as_mut().map(|config| &mut config.dns)
            && !refresh.dns.is_empty()
        {
            *dns = refresh.dns;
        }
        if refresh.hooks_ms.is_some() && hooks::any() {
            disk::write_names(&new, &self.identity)?;
            let deadline = Instant::now() + patience;
            if came.forked {
                self.run_hooks(When::Fork, &new, &env, deadline, tell, &mut came)?;
            }
            self.run_hooks(When::Restore, &new, &env, deadline, tell, &mut came)?;
        }
        // Of two refreshes at once, the files still tell of what was before both.
        let old = std::mem::replace(&mut self.identity, new);
        self.stale.get_or_insert(old);
        Ok(came)
    }

    /// Commands of the host have the instance's variables from now on.
    fn take_env(&mut self, env: Vec<String>) {
        if env == self.env {
            return;
        }
        if let Some(config) = &mut self.config {
            let all: Vec<&str> = config.program.env.iter().chain(&env).map(String::as_str).collect();
            config.program.env = environment(&all);
        }
        self.env = env;
    }

    /// What a fork has of its own beside its names.
    fn fork(
        &mut self,
        new: &Identity,
        env: &[String],
        patience: Duration,
        tell: Option<u32>,
        came: &mut Came,
    ) -> Result<(), String> {
        let keys = ssh::host_keys()?;
        if !keys.is_empty() {
            self.say(tell, RefreshPart::SshHostKeys);
            let env: Vec<&str> = env.iter().map(String::as_str).collect();
            came.complaints.extend(ssh::renew(&keys, &new.hostname, &env, Instant::now() + patience)?);
        }
        Ok(())
    }

    /// Runs a directory's hooks; those for forks up to the first that fails.
    fn run_hooks(
        &mut self,
        when: When,
        identity: &Identity,
        env: &[String],
        deadline: Instant,
        tell: Option<u32>,
        came: &mut Came,
    ) -> Result<(), String> {
        let hooks = match (hooks::list(when), when) {
            (Ok(hooks), _) => hooks,
            (Err(why), When::Fork) => return Err(why),
            (Err(why), When::Restore) => {
                came.complaints.push(why);
                return Ok(());
            }
        };
        if !hooks.is_empty() {
            self.say(
                tell,
                match when {
                    When::Fork => RefreshPart::ForkHooks,
                    When::Restore => RefreshPart::RestoreHooks,
                },
            );
        }
        for hook in hooks {
            came.hooks += 1;
            match (hook.run(identity, env, deadline), when) {
                (Ok(()), _) => {}
                (Err(why), When::Fork) => return Err(why),
                (Err(why), When::Restore) => came.complaints.push(why),
            }
        }
        Ok(())
    }

    /// Tells the host what comes next, now: it may take long.
    fn say(&mut self, channel: Option<u32>, part: RefreshPart) {
        let Some(channel) = channel else { return };
        self.outbox.send(channel, &ToHost::Refreshing(part), &[]);
        self.outbox.flush(&mut self.link);
    }
}
