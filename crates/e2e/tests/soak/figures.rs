//! What was done, counted.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use crate::model::Answer;

/// Counted by all clients.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    asked: RefCell<BTreeMap<&'static str, [u64; 4]>>,
    faults: RefCell<BTreeMap<String, u64>>,
}

impl Figures {
    pub(crate) fn asked(&self, verb: &'static str, answer: Answer) {
        let nth = match answer {
            Answer::Done => 0,
            Answer::Refused(_) => 1,
            Answer::Failed(_) => 2,
            Answer::Lost => 3,
        };
        self.asked.borrow_mut().entry(verb).or_default()[nth] += 1;
    }

    pub(crate) fn fault(&self, kind: &str) {
        *self.faults.borrow_mut().entry(kind.to_owned()).or_default() += 1;
    }
}

/// One line: `verb done/refused/failed/cut off`, then the faults.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = self.asked.borrow();
        let all: u64 = asked.values().flatten().sum();
        let by_verb: Vec<String> = asked
            .iter()
            .map(|(verb, [done, refused, failed, lost])| format!("{verb} {done}/{refused}/{failed}/{lost}"))
            .collect();
        let faults = self.faults.borrow();
        let by_kind: Vec<String> = faults.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        write!(
            f,
            "{all} operations (done/refused/failed/cut off): {}; {} faults: {}",
            by_verb.join(", "),
            faults.values().sum::<u64>(),
            by_kind.join(", "),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::ErrorKind;

    #[test]
    fn the_line() {
        let figures = Figures::default();
        figures.asked("stop", Answer::Done);
        figures.asked("stop", Answer::Lost);
        figures.asked("create", Answer::Refused(ErrorKind::AlreadyExists));
        figures.fault("daemon killed");
        let line =
            "3 operations (done/refused/failed/cut off): create 0/1/0/0, stop 1/0/0/1; 1 faults: daemon killed 1";
        assert_eq!(figures.to_string(), line);
    }
}
