//! Records that cannot be stored for a while, as on a full disk: what has ended is not forgotten.

use std::time::Duration;

use hearth_model::InstanceState;
use rusqlite::Connection;

use crate::world::World;

/// The records, by a connection of its own.
fn records(world: &World) -> Connection {
    let records = Connection::open(world.host.data.root().join("state.db")).expect("records");
    records.busy_timeout(Duration::from_secs(5)).expect("a wait");
    records
}

/// Refuses `what` until the trigger is dropped.
fn refuse(records: &Connection, what: &str) {
    let refusal = "BEGIN SELECT RAISE(FAIL, 'no room'); END";
    records.execute_batch(&format!("CREATE TRIGGER full BEFORE {what} {refusal}")).expect("a trigger");
}

fn allow(records: &Connection) {
    records.execute_batch("DROP TRIGGER full").expect("no trigger");
}

fn resting(records: &Connection) -> i64 {
    let query = "SELECT count(*) FROM instances WHERE record ->> '$.phase.phase' = 'resting'";
    records.query_row(query, [], |row| row.get(0)).expect("a count")
}

async fn soon(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..200 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within 10 s: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_whose_end_of_creation_could_not_be_stored_is_there_after_a_restart() {
    let mut world = World::new().await;
    let records = records(&world);
    refuse(&records, "UPDATE ON instances WHEN NEW.record ->> '$.phase.phase' = 'resting'");
    world.create("web").await.expect("created");
    assert_eq!(resting(&records), 0, "nothing was refused");
    allow(&records);
    soon("it is stored", || resting(&records) == 1).await;
    world.reborn().await;
    assert_eq!(*world.get("web").view().state(), InstanceState::Running);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_could_not_be_removed_frees_its_name_later() {
    let world = World::new().await;
    let records = records(&world);
    let web = world.create("web").await.expect("created");
    refuse(&records, "DELETE ON instances");
    web.delete(false).await.expect("deleted");
    assert!(world.create("web").await.is_err(), "its name is in the records");
    allow(&records);
    soon("it is removed", || {
        records.query_row("SELECT count(*) = 0 FROM instances", [], |row| row.get::<_, bool>(0)).expect("a count")
    })
    .await;
    world.create("web").await.expect("the name is free");
}
