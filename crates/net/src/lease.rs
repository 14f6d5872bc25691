//! Who has which outer address.
//!
//! An address is an instance's for life. One that was given back rests before it is given out
//! again, so that connections of its last owner do not reach the next: those that were never given
//! out come first, then the one that has rested longest.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;

use crate::fault::NetError;

/// The addresses of one range.
#[derive(Debug)]
pub(crate) struct Leases {
    cidr: Ipv4Net,
    reuse_after: Duration,
    /// Of the instances' part of the range, the next that was not yet looked at.
    next: u32,
    /// How many were not yet looked at.
    fresh: u32,
    leased: BTreeSet<Ipv4Addr>,
    /// Given back, the first one first.
    resting: VecDeque<(Ipv4Addr, Instant)>,
}

/// The address that the host has towards its guests: the first of the range.
pub(crate) fn host_address(cidr: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from_bits(cidr.network().to_bits() + 1)
}

/// How many addresses there are for instances: all but the network's, the host's, the broadcast's.
fn capacity(cidr: Ipv4Net) -> u32 {
    let all = 1_u64 << (32 - u32::from(cidr.prefix_len()));
    u32::try_from(all.saturating_sub(3)).expect("below 2^32")
}

impl Leases {
    /// Nothing is leased. `start` says where in the range to begin: a daemon that is started again
    /// does not know what rests, and begins elsewhere.
    pub(crate) fn new(cidr: Ipv4Net, reuse_after: Duration, start: u32) -> Result<Self, NetError> {
        let cidr = cidr.trunc();
        match capacity(cidr) {
            0 => Err(NetError::RangeTooSmall { cidr }),
            fresh => Ok(Self {
                cidr,
                reuse_after,
                next: start % fresh,
                fresh,
                leased: BTreeSet::new(),
                resting: VecDeque::new(),
            }),
        }
    }

    pub(crate) fn lease(&mut self, now: Instant) -> Result<Ipv4Addr, NetError> {
        let rested = |(_, since): &(Ipv4Addr, Instant)| now.duration_since(*since) >= self.reuse_after;
        let address = match self.resting.front() {
            Some(first) if rested(first) => self.resting.pop_front().map(|(address, _)| address),
            _ => self.fresh().or_else(|| self.resting.pop_front().map(|(address, _)| address)),
        };
        let address = address.ok_or(NetError::RangeExhausted { cidr: self.cidr, leased: self.leased.len() })?;
        self.leased.insert(address);
        Ok(address)
    }

    /// One that was never given out.
    fn fresh(&mut self) -> Option<Ipv4Addr> {
        while self.fresh > 0 {
            let address = Ipv4Addr::from_bits(host_address(self.cidr).to_bits() + 1 + self.next);
            self.next = (self.next + 1) % capacity(self.cidr);
            self.fresh -= 1;
            // Held by a record, or was.
            let known = self.leased.contains(&address) || self.resting.iter().any(|(resting, _)| *resting == address);
            if !known {
                return Some(address);
            }
        }
        None
    }

    /// Marks as leased what a record says is.
    pub(crate) fn hold(&mut self, address: Ipv4Addr) {
        self.resting.retain(|(resting, _)| *resting != address);
        self.leased.insert(address);
    }

    pub(crate) fn give_back(&mut self, address: Ipv4Addr, now: Instant) {
        // One from outside came from a record, when the range was another.
        if self.leased.remove(&address) && self.is_inside(address) {
            self.resting.push_back((address, now));
        }
    }

    /// Whether an instance may use the address now.
    pub(crate) fn check(&self, address: Ipv4Addr) -> Result<(), NetError> {
        if !self.is_inside(address) {
            return Err(NetError::OutsideRange { address, cidr: self.cidr });
        }
        if self.leased.contains(&address) { Ok(()) } else { Err(NetError::NotLeased { address }) }
    }

    #[cfg(feature = "fake")]
    pub(crate) fn leased(&self) -> Vec<Ipv4Addr> {
        self.leased.iter().copied().collect()
    }

    fn is_inside(&self, address: Ipv4Addr) -> bool {
        let first = host_address(self.cidr).to_bits() + 1;
        (first..first + capacity(self.cidr)).contains(&address.to_bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(60);

    fn leases(cidr: &str, start: u32) -> Leases {
        Leases::new(cidr.parse().expect("a range"), REST, start).expect("large enough")
    }

    #[test]
    fn every_address_of_a_range_is_given_out_once_and_never_the_host_s() {
        let now = Instant::now();
        for start in [0, 3, 4, 1000] {
            let mut leases = leases("10.100.0.0/29", start);
            let mut got: Vec<_> = (0..5).map(|_| leases.lease(now).expect("one is left").to_string()).collect();
            got.sort();
            assert_eq!(got, ["10.100.0.2", "10.100.0.3", "10.100.0.4", "10.100.0.5", "10.100.0.6"], "{start}");
            let error = leases.lease(now).expect_err("none is left");
            assert_eq!(error.to_string(), "lease an address: all 5 of the range 10.100.0.0/29 are taken");
        }
    }

    #[test]
    fn an_address_rests_and_the_one_that_rested_longest_comes_first() {
        let start = Instant::now();
        let mut leases = leases("10.100.0.0/29", 0);
        let [a, b, c] = [(); 3].map(|()| leases.lease(start).expect("fresh"));
        leases.give_back(b, start);
        leases.give_back(a, start + Duration::from_secs(1));
        assert!(![a, b, c].contains(&leases.lease(start + Duration::from_secs(59)).expect("fresh")));
        assert_eq!(leases.lease(start + Duration::from_secs(60)).expect("rested"), b);
        assert!(![a, b, c].contains(&leases.lease(start + Duration::from_secs(60)).expect("fresh")));
        // None is fresh: better too early than not at all.
        assert_eq!(leases.lease(start + Duration::from_secs(60)).expect("the last"), a);
        leases.lease(start + REST * 100).expect_err("all are leased");
    }

    #[test]
    fn what_records_hold_is_not_given_out_until_it_was_given_back() {
        let now = Instant::now();
        let mut leases = leases("10.100.0.0/30", 0);
        let only: Ipv4Addr = "10.100.0.2".parse().expect("an address");
        leases.hold(only);
        leases.hold(only);
        leases.lease(now).expect_err("it is held");
        leases.give_back(only, now);
        leases.give_back(only, now);
        assert_eq!(leases.lease(now).expect("given back"), only);
        leases.lease(now).expect_err("it was given back once");
        // Leased under another range.
        let foreign: Ipv4Addr = "10.99.0.2".parse().expect("an address");
        leases.hold(foreign);
        assert!(matches!(leases.check(foreign), Err(NetError::OutsideRange { .. })));
        leases.give_back(foreign, now);
        leases.lease(now + REST * 2).expect_err("it is not of this range");
    }

    #[test]
    fn a_range_without_room_is_refused() {
        for cidr in ["10.0.0.0/31", "10.0.0.0/32"] {
            let error = Leases::new(cidr.parse().expect("a range"), REST, 0).expect_err("no room");
            assert!(matches!(error, NetError::RangeTooSmall { .. }));
        }
    }
}
