//! Metrics as a collector reads them.

use std::collections::{BTreeMap, BTreeSet};

use super::server::{Answer, Server};

/// What `/metrics` says, in the older text format.
#[derive(Debug)]
pub(super) struct Exposition {
    pub(super) text: String,
    /// Names of families, as in `# TYPE` lines, with their types.
    pub(super) families: BTreeMap<String, String>,
    pub(super) samples: Vec<Sample>,
}

#[derive(Debug)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

pub(super) async fn get(server: &Server, headers: &[(&str, &str)]) -> Answer {
    server.raw("GET /metrics", headers, "").await
}

pub(super) async fn read(server: &Server) -> Exposition {
    let answer = get(server, &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    Exposition::parse(answer.body)
}

impl Exposition {
    fn parse(text: String) -> Self {
        let mut this = Self { text: String::new(), families: BTreeMap::new(), samples: Vec::new() };
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                let before = this.families.insert(name.to_owned(), kind.to_owned());
                assert_eq!(before, None, "{name} is there twice");
            } else if !line.starts_with('#') {
                this.samples.push(Sample::parse(line));
            }
        }
        Self { text, ..this }
    }

    /// The sum of the samples of that name that have these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples.iter().filter(|sample| sample.name == name && sample.has(labels)).map(|sample| sample.value).sum()
    }

    /// Samples' names: of a histogram there are three.
    pub(super) fn names(&self) -> BTreeSet<&str> {
        self.samples.iter().map(|sample| sample.name.as_str()).collect()
    }

    /// The values that a label of a series has.
    pub(super) fn values(&self, name: &str, label: &str) -> BTreeSet<&str> {
        let samples = self.samples.iter().filter(|sample| sample.name == name);
        samples.filter_map(|sample| sample.labels.get(label)).map(String::as_str).collect()
    }
}

impl Sample {
    fn parse(line: &str) -> Self {
        let (series, value) = line.rsplit_once(' ').expect("a series and a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}').expect("labels end");
        let pairs = labels.split("\",").filter(|pair| !pair.is_empty());
        let labels = pairs.map(|pair| pair.trim_end_matches('"').split_once("=\"").expect("a label and a value"));
        Self {
            name: name.to_owned(),
            labels: labels.map(|(label, value)| (label.to_owned(), value.to_owned())).collect(),
            value: value.parse().expect("a number"),
        }
    }

    fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(label, value)| self.labels.get(*label).is_some_and(|has| has == value))
    }
}
