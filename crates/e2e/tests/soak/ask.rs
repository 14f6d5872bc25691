//! A client: asks the daemon for what was drawn, and takes the answer into what is known.

use anyhow::{Context, Result, bail};
use hearth_api::client::ClientError;
use hearth_api::instances::{CreateInstance, DeleteInstance, ForkInstance, Forked, Instance};
use hearth_api::snapshots::{CreateSnapshot, ForkSnapshot, RestoreSnapshot, SnapshotKind};
use hearth_e2e::TestHost;
use hearth_model::{ErrorKind, Kind as _};

use crate::draw::Ask;
use crate::figures::Figures;
use crate::model::{Answer, Life, Saved, Trouble, Verb, after, born_of, perhaps_ended, saved};
use crate::realm::{Id, Kept, Realm};

/// The image that all are made of.
pub(crate) const IMAGE: &str = "soak:1";
/// Where a guest remembers something.
const FILE: &str = "/token";

/// Asks, and learns from the answer.
pub(crate) async fn ask(
    host: &TestHost,
    realm: &mut Realm,
    ask: Ask,
    trouble: impl Fn(usize) -> Trouble,
    figures: &Figures,
) -> Result<()> {
    match ask {
        Ask::Save { slot, place, memory } => save(host, realm, (slot, place), memory, trouble(slot), figures).await,
        Ask::Drop { place } => drop_snapshot(host, realm, place, trouble(0), figures).await,
        Ask::Verify { place } => verify(host, realm, place, trouble(0), figures).await,
        Ask::Fork { from, slot } => fork(host, realm, (from, slot), &trouble, figures).await,
        Ask::ForkSaved { place, slot } => fork_saved(host, realm, (place, slot), trouble(slot), figures).await,
        Ask::Revert { slot, place } => revert(host, realm, (slot, place), trouble(slot), figures).await,
        Ask::Create { slot }
        | Ask::Start { slot }
        | Ask::Stop { slot }
        | Ask::Standby { slot }
        | Ask::Restore { slot }
        | Ask::Delete { slot }
        | Ask::Write { slot, .. }
        | Ask::Read { slot } => {
            let (verb, answer, id) = of_one(host, &realm.slots[slot].name, ask, figures).await?;
            learn(realm, slot, &[verb], answer, trouble(slot), id)
        }
    }
}

/// Asks for what concerns one instance alone.
pub(crate) async fn of_one(
    host: &TestHost,
    name: &str,
    ask: Ask,
    figures: &Figures,
) -> Result<(Verb, Answer, Option<String>)> {
    let client = host.client();
    let (told, verb, answered) = match ask {
        Ask::Create { .. } => {
            let request = CreateInstance { network: None, ..TestHost::request(name, IMAGE) };
            ("create", Verb::Create, client.create_instance(&request).await.map(Some))
        }
        Ask::Start { .. } => ("start", Verb::Start, client.start(name).await.map(Some)),
        Ask::Stop { .. } => ("stop", Verb::Stop, client.stop(name).await.map(Some)),
        Ask::Standby { .. } => ("standby", Verb::Standby, client.standby(name).await.map(Some)),
        Ask::Restore { .. } => ("restore", Verb::Restore, client.restore(name).await.map(Some)),
        Ask::Delete { .. } => {
            ("delete", Verb::Delete, client.delete_instance(name, &DeleteInstance::default()).await.map(|()| None))
        }
        Ask::Write { token, .. } => {
            let answer =
                run(host, name, &["write", FILE, &token.to_string()]).await?.map_or_else(|it| it, |_| Answer::Done);
            figures.asked("write", answer);
            return Ok((Verb::Write(token), answer, None));
        }
        Ask::Read { .. } => {
            let (token, answer) = match run(host, name, &["cat", FILE]).await? {
                Ok(text) if text.is_empty() => (0, Answer::Done),
                Ok(text) => (text.trim().parse().with_context(|| format!("{name} remembers {text:?}"))?, Answer::Done),
                Err(answer) => (0, answer),
            };
            figures.asked("read", answer);
            return Ok((Verb::Read(token), answer, None));
        }
        Ask::Save { .. }
        | Ask::Drop { .. }
        | Ask::Verify { .. }
        | Ask::Revert { .. }
        | Ask::Fork { .. }
        | Ask::ForkSaved { .. } => bail!("{ask:?} does not concern one instance alone"),
    };
    let (answer, instance) = taken(answered)?;
    figures.asked(told, answer);
    Ok((verb, answer, instance.flatten().map(|instance: Instance| instance.id)))
}

/// Runs a command in a guest: what it printed, or why it was not run.
async fn run(host: &TestHost, name: &str, command: &[&str]) -> Result<Result<String, Answer>> {
    match host.vm(name).run(command).await {
        Ok(ran) if ran.error.is_some() => Ok(Err(Answer::Lost)),
        Ok(ran) => Ok(Ok(ran.stdout)),
        Err(error) => match error.downcast::<ClientError>() {
            Ok(error) => Ok(Err(answer(&error)?)),
            Err(error) => Err(error),
        },
    }
}

async fn save(
    host: &TestHost,
    realm: &mut Realm,
    (slot, place): (usize, usize),
    memory: bool,
    trouble: Trouble,
    figures: &Figures,
) -> Result<()> {
    if realm.places[place].is_some() {
        drop_snapshot(host, realm, place, trouble, figures).await?;
        if realm.places[place].is_some() {
            // It could not be removed: there is no room for another.
            return Ok(());
        }
    }
    realm.saves += 1;
    let name = format!("s{}-{}", realm.client, realm.saves);
    let kind = if memory { SnapshotKind::Standby } else { SnapshotKind::Stopped };
    let request = CreateSnapshot { kind, name: Some(name.clone()), tags: None };
    let (answer, _) = taken(host.client().create_snapshot(&realm.slots[slot].name, &request).await)?;
    figures.asked("snapshot", answer);
    let lives = &realm.slots[slot].lives;
    let lives = if trouble.ends { perhaps_ended(lives) } else { lives.clone() };
    let holds = lives.iter().filter_map(|life| saved(*life));
    let holds = holds.filter(|saved| memory == matches!(saved, Saved::Memory(_))).collect();
    learn(realm, slot, &[Verb::Save { memory }], answer, trouble, None)?;
    if matches!(answer, Answer::Done | Answer::Lost) {
        let (source, unsure) = (known(&realm.slots[slot].id), answer == Answer::Lost);
        realm.places[place] = Some(Kept { name, holds, source, unsure, suspect: false, half_gone: false });
    }
    Ok(())
}

pub(crate) async fn drop_snapshot(
    host: &TestHost,
    realm: &mut Realm,
    place: usize,
    trouble: Trouble,
    figures: &Figures,
) -> Result<()> {
    let name = called(realm, place);
    let (answer, _) = taken(host.client().delete_snapshot(&name).await)?;
    figures.asked("snapshot delete", answer);
    let Some(kept) = &mut realm.places[place] else { return missing(answer, trouble) };
    match answer {
        Answer::Done => realm.places[place] = None,
        Answer::Refused(ErrorKind::NotFound) if kept.unsure => realm.places[place] = None,
        Answer::Lost | Answer::Refused(ErrorKind::Cancelled) if trouble.cuts_off => kept.unsure = true,
        Answer::Failed(kind) if trouble.fails.contains(&kind) => (kept.unsure, kept.half_gone) = (true, true),
        answer => bail!("the removal of snapshot {name} was answered with {answer:?}"),
    }
    Ok(())
}

pub(crate) async fn verify(
    host: &TestHost,
    realm: &mut Realm,
    place: usize,
    trouble: Trouble,
    figures: &Figures,
) -> Result<()> {
    let name = called(realm, place);
    let (answer, _) = taken(host.client().verify_snapshot(&name).await)?;
    figures.asked("verify", answer);
    let Some(kept) = &mut realm.places[place] else { return missing(answer, trouble) };
    kept.suspect &= answer != Answer::Done;
    match answer {
        Answer::Done => Ok(()),
        // A file that cannot be read from the disk is one that is damaged, until it can.
        Answer::Failed(ErrorKind::Corrupt) if trouble.stays => {
            kept.suspect = true;
            Ok(())
        }
        // Its sums are made in the background.
        Answer::Refused(ErrorKind::WrongState) => Ok(()),
        Answer::Refused(ErrorKind::NotFound) if kept.unsure => Ok(()),
        Answer::Lost | Answer::Refused(ErrorKind::Cancelled) if trouble.cuts_off => Ok(()),
        Answer::Failed(kind) if trouble.fails.contains(&kind) => Ok(()),
        answer => bail!("the check of snapshot {name} was answered with {answer:?}"),
    }
}

async fn revert(
    host: &TestHost,
    realm: &mut Realm,
    (slot, place): (usize, usize),
    trouble: Trouble,
    figures: &Figures,
) -> Result<()> {
    let name = called(realm, place);
    let request = RestoreSnapshot::default();
    let answered = host.client().restore_snapshot(&realm.slots[slot].name, &name, &request).await;
    let (answer, instance) = taken(answered)?;
    figures.asked("revert", answer);
    if answer == Answer::Refused(ErrorKind::NotFound) && realm.places[place].as_ref().is_none_or(|kept| kept.unsure) {
        return Ok(());
    }
    let Some(kept) = &realm.places[place] else { return missing(answer, trouble) };
    if kept.suspect && answer == Answer::Failed(ErrorKind::Corrupt) {
        return Ok(());
    }
    let own = kept.source.is_some() && kept.source == known(&realm.slots[slot].id);
    let maybe_own = own || kept.source.is_none() || realm.slots[slot].id == Id::New;
    let mut verbs: Vec<Verb> = kept.holds.iter().filter(|_| maybe_own).map(|s| Verb::Revert(Some(*s))).collect();
    if !own {
        verbs.push(Verb::Revert(None));
    }
    learn(realm, slot, &verbs, answer, trouble, instance.map(|instance| instance.id))
}

async fn fork(
    host: &TestHost,
    realm: &mut Realm,
    (from, slot): (usize, usize),
    trouble: &impl Fn(usize) -> Trouble,
    figures: &Figures,
) -> Result<()> {
    let name = realm.slots[slot].name.clone();
    let request = ForkInstance { name, from_running: Some(true), ..ForkInstance::default() };
    let (answer, forked) = taken(host.client().fork(&realm.slots[from].name, &request).await)?;
    figures.asked("fork", answer);
    let trouble = Trouble { ends: trouble(from).ends || trouble(slot).ends, ..trouble(slot) };
    let (source, none) = (&realm.slots[from].lives, answer == Answer::Refused(ErrorKind::NotFound));
    if none && source.contains(&Life::Absent) {
        realm.slots[from].lives = [Life::Absent].into();
        return Ok(());
    }
    let ran = source.iter().any(|life| matches!(life, Life::Running(_)));
    if trouble.ends && ran && answer == Answer::Refused(ErrorKind::WrongState) {
        // Its VMM ended after it was found running, and before it was saved.
        return Ok(());
    }
    let mut verbs: Vec<Verb> =
        source.iter().filter(|life| **life != Life::Absent).map(|life| Verb::BeBorn(*life)).collect();
    if trouble.ends && ran {
        verbs.push(Verb::BeBorn(Life::Stopped));
    }
    learn(realm, slot, &verbs, answer, trouble, id_of(forked))
}

async fn fork_saved(
    host: &TestHost,
    realm: &mut Realm,
    (place, slot): (usize, usize),
    trouble: Trouble,
    figures: &Figures,
) -> Result<()> {
    let snapshot = called(realm, place);
    let request = ForkSnapshot { name: realm.slots[slot].name.clone(), ..ForkSnapshot::default() };
    let (answer, forked) = taken(host.client().fork_snapshot(&snapshot, &request).await)?;
    figures.asked("snapshot fork", answer);
    let Some(kept) = &realm.places[place] else { return missing(answer, trouble) };
    if kept.unsure && answer == Answer::Refused(ErrorKind::NotFound) {
        return Ok(());
    }
    let verbs: Vec<Verb> = kept.holds.iter().map(|saved| Verb::BeBorn(born_of(*saved))).collect();
    if kept.suspect && answer == Answer::Failed(ErrorKind::Corrupt) {
        return Ok(());
    }
    learn(realm, slot, &verbs, answer, trouble, id_of(forked))
}

/// Takes an answer into what is known of a slot; `id` is that of the instance in the answer.
fn learn(
    realm: &mut Realm,
    slot: usize,
    verbs: &[Verb],
    answer: Answer,
    trouble: Trouble,
    id: Option<String>,
) -> Result<()> {
    let slot = &mut realm.slots[slot];
    let known = &slot.lives;
    slot.lives = after(known, verbs, answer, trouble).map_err(|why| anyhow::anyhow!("{}: {why}", slot.name))?;
    match (id, &slot.id) {
        (Some(id), Id::Known(before)) if id != *before => bail!("{} was {before}, and was answered as {id}", slot.name),
        (Some(id), _) => slot.id = Id::Known(id),
        (None, _) if slot.lives.contains(&Life::Absent) => slot.id = Id::New,
        (None, _) => {}
    }
    Ok(())
}

/// Of what is not there nothing but that can be said.
fn missing(answer: Answer, trouble: Trouble) -> Result<()> {
    match answer {
        Answer::Refused(ErrorKind::NotFound) => Ok(()),
        Answer::Lost | Answer::Refused(ErrorKind::Cancelled) if trouble.cuts_off => Ok(()),
        answer => bail!("a snapshot that is not there was answered with {answer:?}"),
    }
}

/// The name of what is kept there, or one that nothing has.
fn called(realm: &Realm, place: usize) -> String {
    realm.places[place].as_ref().map_or_else(|| "no-such-snapshot".to_owned(), |kept| kept.name.clone())
}

fn known(id: &Id) -> Option<String> {
    match id {
        Id::Known(id) => Some(id.clone()),
        Id::New => None,
    }
}

fn id_of(forked: Option<Forked>) -> Option<String> {
    forked?.instances.into_iter().next().map(|instance| instance.id)
}

fn taken<T>(answered: Result<T, ClientError>) -> Result<(Answer, Option<T>)> {
    match answered {
        Ok(answer) => Ok((Answer::Done, Some(answer))),
        Err(error) => Ok((answer(&error)?, None)),
    }
}

fn answer(error: &ClientError) -> Result<Answer> {
    match error {
        ClientError::NotReachable { .. } | ClientError::Lost { .. } => Ok(Answer::Lost),
        ClientError::Api(refused) => {
            let answer = Answer::of(error.kind());
            if matches!(answer, Answer::Failed(_)) {
                println!("    {answer:?}: {}", refused.body.message);
            }
            Ok(answer)
        }
        other => bail!("no answer of Hearth's: {other}"),
    }
}
