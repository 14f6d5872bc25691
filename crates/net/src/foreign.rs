//! Other people's rules against forwarding: Docker's `FORWARD` with policy drop, a firewall of the
//! user's.
//!
//! An accept in our own table does not overrule a drop in another's: every base chain on the hook
//! is asked, and each must accept. So each foreign chain that refuses what nobody mentioned gets two
//! rules, known by their comment: what comes from our links and what goes to them is accepted there.
//! Our own table, which is asked as well, is what decides about it.
//!
//! The rules stand last, or before a last rule that refuses everything: what the chain's owner
//! refuses explicitly before that stays refused to instances too. They are made of what `iptables`
//! understands, because one rule it does not understand makes it give up on its whole table (seen
//! with a `ct state`: "chain `FORWARD' is incompatible, use 'nft' tool").

use hearth_model::{ErrorKind, Kind};
use serde_json::{Value, json};

use crate::nft::{Nft, NftError};
use crate::ruleset::{host_table, link_prefix};

/// A base chain of somebody else's that refuses to forward what nobody mentioned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignChain {
    family: String,
    table: String,
    name: String,
    /// Whether that is its policy.
    drops: bool,
    /// Our rules in it, by handle.
    ours: Vec<(u64, Direction)>,
    /// The handle of its last rule, if that refuses everything.
    refusal: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    From,
    To,
}

impl Direction {
    const BOTH: [Self; 2] = [Self::From, Self::To];

    fn key(self) -> &'static str {
        match self {
            Self::From => "iifname",
            Self::To => "oifname",
        }
    }
}

/// Foreign chains could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForeignError {
    /// Not even listed.
    #[error("look for other tables that refuse to forward")]
    Look(#[source] NftError),
    /// One of them does not take our rules.
    #[error("let instances through the chain {chain}, which refuses to forward")]
    Change {
        chain: String,
        #[source]
        source: NftError,
    },
}

impl Kind for ForeignError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Look(source) | Self::Change { source, .. } => source.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Look(source) => source.hint(),
            Self::Change { .. } => Some(
                "its owner may keep others out (firewalld: NftablesTableOwner=no lets them in); `hearth doctor` says which rules to add there"
                    .into(),
            ),
        }
    }
}

impl std::fmt::Display for ForeignChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

impl ForeignChain {
    /// Whether instances of this daemon pass it already.
    pub(crate) fn admits(&self) -> bool {
        Direction::BOTH.iter().all(|wanted| self.ours.iter().filter(|(_, found)| found == wanted).count() == 1)
    }

    /// What the user may add, where the daemon must not.
    pub(crate) fn advice(&self, tag: &str) -> String {
        let (links, verb) = (link_prefix(tag), if self.refusal.is_some() { "insert" } else { "add" });
        let commands = Direction::BOTH
            .map(|direction| format!("nft {verb} rule {self} {} '\"{links}*\"' accept", direction.key()));
        commands.join("; ")
    }
}

/// Lets the instances of this daemon pass all foreign chains of the calling thread's namespace.
/// Those that got rules now; none when all is as it should be.
///
/// To be done again from time to time: who writes a table anew (`iptables-restore`, a reload of a
/// firewall) takes the rules out.
pub(crate) fn admit(nft: Nft, tag: &str) -> Result<Vec<ForeignChain>, ForeignError> {
    let mut changed = Vec::new();
    for chain in find(nft, tag)? {
        if !chain.admits() {
            change(nft, &chain, &additions(&chain, tag))?;
            changed.push(chain);
        }
    }
    Ok(changed)
}

/// Takes the rules out again.
pub(crate) fn withdraw(nft: Nft, tag: &str) -> Result<(), ForeignError> {
    for chain in forward_chains(nft, tag)? {
        if !chain.ours.is_empty() {
            change(nft, &chain, &removals(&chain))?;
        }
    }
    Ok(())
}

/// The foreign chains that refuse what nobody mentioned, with or without our rules.
pub(crate) fn find(nft: Nft, tag: &str) -> Result<Vec<ForeignChain>, ForeignError> {
    let mut chains = forward_chains(nft, tag)?;
    chains.retain(|chain| chain.refusal.is_some() || chain.drops);
    Ok(chains)
}

/// All foreign base chains on the hook.
fn forward_chains(nft: Nft, tag: &str) -> Result<Vec<ForeignChain>, ForeignError> {
    let listing = nft.list("list chains").map_err(ForeignError::Look)?;
    let mut chains = Vec::new();
    for chain in objects(&listing, "chain").filter(|chain| is_foreign_forward(chain)) {
        let [family, table, name] = ["family", "table", "name"].map(|key| text(chain, key));
        let rules = match nft.list(&format!("list chain {family} {table} {name}")) {
            Ok(rules) => rules,
            // It went since it was listed.
            Err(error) if error.is_missing() => continue,
            Err(error) => return Err(ForeignError::Look(error)),
        };
        chains.push(read(chain, &rules, tag));
    }
    Ok(chains)
}

fn change(nft: Nft, chain: &ForeignChain, commands: &Value) -> Result<(), ForeignError> {
    match nft.run_json(commands) {
        // It went since it was listed, and its rules with it.
        Err(error) if error.is_missing() => Ok(()),
        other => other.map_err(|source| ForeignError::Change { chain: chain.to_string(), source }),
    }
}

/// Tables of ours, this daemon's or another's, decide for themselves.
fn is_foreign_forward(chain: &Value) -> bool {
    matches!(text(chain, "family"), "ip" | "inet")
        && text(chain, "hook") == "forward"
        && text(chain, "type") == "filter"
        && !text(chain, "table").starts_with(&host_table(""))
}

fn read(chain: &Value, rules: &Value, tag: &str) -> ForeignChain {
    let comment = host_table(tag);
    let rules: Vec<&Value> = objects(rules, "rule").collect();
    let (ours, theirs): (Vec<&Value>, Vec<&Value>) =
        rules.into_iter().partition(|rule| text(rule, "comment") == comment);
    let direction = |rule: &Value| {
        let key = rule["expr"].as_array()?.iter().find_map(|part| part["match"]["left"]["meta"]["key"].as_str())?;
        Direction::BOTH.into_iter().find(|direction| direction.key() == key)
    };
    let handle = |rule: &Value| rule["handle"].as_u64();
    ForeignChain {
        family: text(chain, "family").to_owned(),
        table: text(chain, "table").to_owned(),
        name: text(chain, "name").to_owned(),
        drops: text(chain, "policy") == "drop",
        ours: ours.into_iter().filter_map(|rule| Some((handle(rule)?, direction(rule)?))).collect(),
        refusal: theirs.last().filter(|rule| refuses_everything(rule)).and_then(|rule| handle(rule)),
    }
}

/// Whether nothing in the rule is a condition, and it refuses.
fn refuses_everything(rule: &Value) -> bool {
    let parts: Vec<&Value> = rule["expr"].as_array().into_iter().flatten().collect();
    let of_iptables = |part: &Value, what: &str| text(&part["xt"], "type") == what;
    let name = |part: &Value| text(&part["xt"], "name").to_owned();
    let refusal = |part: &Value| {
        part.get("drop").is_some()
            || part.get("reject").is_some()
            || (of_iptables(part, "target") && matches!(name(part).as_str(), "REJECT" | "DROP"))
    };
    let harmless = |part: &Value| {
        part.get("counter").is_some()
            || part.get("log").is_some()
            || (of_iptables(part, "match") && name(part) == "comment")
    };
    parts.iter().any(|part| refusal(part)) && parts.iter().all(|part| refusal(part) || harmless(part))
}

/// Both rules, in place of what there is of them.
fn additions(chain: &ForeignChain, tag: &str) -> Value {
    let mut commands = removal_list(chain);
    let links = format!("{}*", link_prefix(tag));
    for direction in Direction::BOTH {
        let mut rule = json!({
            "family": chain.family, "table": chain.table, "chain": chain.name,
            "comment": host_table(tag),
            "expr": [
                { "match": { "op": "==", "left": { "meta": { "key": direction.key() } }, "right": links } },
                { "counter": null },
                { "accept": null },
            ],
        });
        let verb = if let Some(refusal) = chain.refusal {
            rule["handle"] = refusal.into();
            "insert"
        } else {
            "add"
        };
        commands.push(json!({ verb: { "rule": rule } }));
    }
    json!({ "nftables": commands })
}

fn removals(chain: &ForeignChain) -> Value {
    json!({ "nftables": removal_list(chain) })
}

fn removal_list(chain: &ForeignChain) -> Vec<Value> {
    let rule = |handle: u64| {
        let rule = json!({ "family": chain.family, "table": chain.table, "chain": chain.name, "handle": handle });
        json!({ "delete": { "rule": rule } })
    };
    chain.ours.iter().map(|(handle, _)| rule(*handle)).collect()
}

fn objects<'a>(listing: &'a Value, kind: &'static str) -> impl Iterator<Item = &'a Value> {
    listing["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::ruleset::{PublishedPort, publish};
    use crate::testbed::{FAR, HOST, Netns, OTHER, TAG, World, at, is_refused, possible, reaches, rules};
    use hearth_model::network::Protocol;

    /// As `iptables -P FORWARD DROP` makes it, with rules of its owner's.
    const DROPPING: &str = r#"table ip filter {
        chain DOCKER-USER {
            ip daddr 203.0.113.9 drop
        }
        chain FORWARD {
            type filter hook forward priority filter; policy drop;
            counter jump DOCKER-USER
            iifname "docker0" accept
        }
    }"#;

    /// As firewalld ends its chain: nothing is left for the policy.
    const REJECTING: &str = r#"table inet firewalld {
        chain filter_FORWARD {
            type filter hook forward priority filter + 10; policy accept;
            iifname "lo" accept
            counter reject with icmpx type admin-prohibited
        }
    }"#;

    /// None of these is in the way.
    const OTHERS: &str = r#"
    table ip6 filter {
        chain FORWARD {
            type filter hook forward priority filter; policy drop;
        }
    }
    table ip harmless {
        chain FORWARD {
            type filter hook forward priority filter; policy accept;
            ip saddr 192.0.2.99 drop
        }
        chain INPUT {
            type filter hook input priority filter; policy drop;
        }
    }"#;

    fn in_netns<T: Send>(netns: &Netns, work: impl FnOnce(Nft) -> T + Send) -> T {
        netns.enter(|| work(Nft::load().expect("libnftables")))
    }

    #[test]
    fn what_refuses_to_forward_is_found_and_nothing_else() {
        if !possible() {
            return;
        }
        let netns = Netns::new();
        netns.nft(&format!("{DROPPING}\n{REJECTING}\n{OTHERS}"));
        let found = in_netns(&netns, |nft| find(nft, TAG)).expect("found");
        let names: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["ip filter FORWARD", "inet firewalld filter_FORWARD"]);
        assert!(found.iter().all(|chain| !chain.admits()));
        // What the user is told to add does what ours would do.
        assert_eq!(
            found[0].advice(TAG),
            r#"nft add rule ip filter FORWARD iifname '"hvab12*"' accept; nft add rule ip filter FORWARD oifname '"hvab12*"' accept"#
        );
        assert!(found[1].advice(TAG).starts_with("nft insert rule inet firewalld"));
    }

    #[test]
    fn rules_are_put_in_once_and_taken_out_without_a_trace() {
        if !possible() {
            return;
        }
        let netns = Netns::new();
        netns.nft(&format!("{DROPPING}\n{REJECTING}\n{OTHERS}"));
        let before = netns.nft("list ruleset");
        assert_eq!(in_netns(&netns, |nft| admit(nft, TAG)).expect("admitted").len(), 2);
        let once = netns.nft("list ruleset");
        assert_eq!(once.matches("comment \"hearth_ab12\"").count(), 4, "{once}");
        assert!(in_netns(&netns, |nft| admit(nft, TAG)).expect("admitted").is_empty());
        assert_eq!(netns.nft("list ruleset"), once, "idempotent");
        // Another daemon's are its own.
        in_netns(&netns, |nft| admit(nft, "ffff")).expect("admitted");
        in_netns(&netns, |nft| withdraw(nft, "ffff")).expect("withdrawn");
        assert_eq!(netns.nft("list ruleset"), once);
        // Half of them is not enough.
        let half = in_netns(&netns, |nft| find(nft, TAG)).expect("found");
        netns.nft(&format!("delete rule ip filter FORWARD handle {}", half[0].ours[0].0));
        assert_eq!(in_netns(&netns, |nft| admit(nft, TAG)).expect("admitted").len(), 1);
        assert_eq!(netns.nft("list ruleset"), once);
        in_netns(&netns, |nft| withdraw(nft, TAG)).expect("withdrawn");
        in_netns(&netns, |nft| withdraw(nft, TAG)).expect("and again");
        assert_eq!(netns.nft("list ruleset"), before);
    }

    #[test]
    fn guests_pass_a_host_that_refuses_to_forward_with_the_rules_and_not_without() {
        if !possible() {
            return;
        }
        for theirs in [DROPPING, REJECTING] {
            let w = World::new(&rules(true, &[]));
            let (far, other) = (w.world.tcp_listener(at(FAR, 80)), w.world.tcp_listener(at(OTHER, 80)));
            let (served, sibling) = (w.a.listener(80), w.b.listener(80));
            w.host.nft(&publish(
                TAG,
                &[PublishedPort { protocol: Protocol::Tcp, host: 8080, outer: w.a.outer, guest: 80 }],
            ));
            reaches(&w.a.guest, at(FAR, 80), &far);
            w.host.nft(theirs);
            let passes_not = || {
                let outward = w.a.guest.try_connect(at(FAR, 80));
                let inward = w.world.try_connect(at(HOST, 8080));
                assert!(outward.is_err() && inward.is_err(), "{outward:?} {inward:?}");
            };
            passes_not();
            in_netns(&w.host, |nft| admit(nft, TAG)).expect("admitted");
            reaches(&w.a.guest, at(FAR, 80), &far);
            assert_eq!(reaches(&w.world, at(HOST, 8080), &served), IpAddr::V4(crate::testbed::WORLD));
            // What we refuse stays refused, and what they refuse explicitly too.
            is_refused(&w.a.guest, at(w.b.outer, 80), &sibling);
            is_refused(&w.world, at(w.a.outer, 80), &served);
            if theirs == DROPPING {
                assert!(w.a.guest.try_connect(at(OTHER, 80)).is_err(), "DOCKER-USER is asked before us");
                crate::testbed::nothing_arrives(&other);
            }
            in_netns(&w.host, |nft| withdraw(nft, TAG)).expect("withdrawn");
            passes_not();
        }
    }
}
