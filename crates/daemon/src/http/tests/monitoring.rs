//! `deploy/monitoring` and `docs/metrics.md` against what the daemon really says: a series that was
//! renamed here would leave an alert that never fires there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use hearth_model::Backend;
use serde_json::Value;

use super::exposition::Exposition;
use super::metrics::a_day;
use super::server::Server;

/// What Prometheus adds to every series that it reads.
const OF_THE_TARGET: [&str; 2] = ["job", "instance"];

fn repository(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../..", path].iter().collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboard() -> Value {
    serde_json::from_str(&read("deploy/monitoring/dashboard.json")).expect("JSON")
}

/// A series as a query names it.
#[derive(Debug)]
struct Reference {
    name: String,
    /// Labels with what is asked of them.
    matchers: Vec<(String, String)>,
}

/// Every series of ours that a text names, and what stands in braces behind it.
fn references(text: &str) -> Vec<Reference> {
    let is_word = |byte: char| byte.is_ascii_alphanumeric() || byte == '_' || byte == ':';
    let mut found = Vec::new();
    for start in ["hearth_", "process_"].iter().flat_map(|prefix| text.match_indices(prefix).map(|(at, _)| at)) {
        if text[..start].ends_with(is_word) {
            continue;
        }
        let name: String = text[start..].chars().take_while(|next| is_word(*next)).collect();
        let behind = &text[start + name.len()..];
        let braces = behind.strip_prefix('{').map(|rest| rest.split('}').next().unwrap_or_default());
        // Values hold no quotes, and no commas but within quotes.
        let matchers = braces.unwrap_or_default().split("\",").map(|matcher| {
            let (label, value) = matcher.split_once('"').unwrap_or((matcher, ""));
            (label.trim().trim_end_matches(['=', '!', '~']).to_owned(), value.trim_end_matches('"').to_owned())
        });
        found.push(Reference { name, matchers: matchers.filter(|(label, _)| !label.is_empty()).collect() });
    }
    found
}

/// Labels in `by (…)` and `on (…)`.
fn grouping(text: &str) -> BTreeSet<&str> {
    let lists = ["by (", "on ("].into_iter().flat_map(|word| text.split(word).skip(1));
    lists.filter_map(|rest| rest.split(')').next()).flat_map(|list| list.split(',')).map(str::trim).collect()
}

fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| strings(value, found)),
        Value::Object(map) => map.values().for_each(|value| strings(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What is wrong with the series that a text names.
fn problems(figures: &Exposition, text: &str) -> Vec<String> {
    let (references, grouping) = (references(text), grouping(text));
    if references.is_empty() && grouping.is_empty() {
        return Vec::new();
    }
    let mut labels: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for sample in &figures.samples {
        labels.entry(&sample.name).or_default().extend(sample.labels.keys().map(String::as_str));
    }
    let mut problems = Vec::new();
    for Reference { name, matchers } in references {
        let Some(has) = labels.get(name.as_str()) else {
            problems.push(format!("there is no series {name}"));
            continue;
        };
        for (label, value) in matchers {
            if OF_THE_TARGET.contains(&label.as_str()) {
                continue;
            }
            if !has.contains(label.as_str()) {
                problems.push(format!("{name} has no label {label}"));
                continue;
            }
            // A host has only the backends that it can run; `$op` is chosen in the dashboard.
            if label == "backend" || value.contains('$') {
                continue;
            }
            let known = figures.values(&name, &label);
            let unknown = value.split('|').filter(|value| !known.contains(value));
            problems.extend(unknown.map(|value| format!("{label} of {name} is never {value:?}")));
        }
    }
    let known: BTreeSet<&str> = labels.values().flatten().copied().chain(OF_THE_TARGET).collect();
    problems.extend(grouping.difference(&known).map(|label| format!("no series has a label {label}")));
    problems
}

#[tokio::test]
async fn rules_and_dashboard_name_only_what_is_there() {
    let server = Server::new().await;
    let figures = a_day(&server).await;
    for path in ["deploy/monitoring/alerts.yaml", "deploy/monitoring/alerts_test.yaml"] {
        let text = read(path);
        assert!(references(&text).len() > 5, "{path} names series");
        assert_eq!(problems(&figures, &text), [""; 0], "{path}");
    }
    let mut texts = Vec::new();
    strings(&dashboard(), &mut texts);
    assert!(texts.iter().map(|text| references(text).len()).sum::<usize>() > 30, "the dashboard names series");
    for text in texts {
        assert_eq!(problems(&figures, &text), [""; 0], "deploy/monitoring/dashboard.json: {text}");
    }
}

/// That the test above can fail.
#[tokio::test]
async fn what_is_not_there_is_found() {
    let server = Server::new().await;
    let figures = a_day(&server).await;
    for (text, problem) in [
        ("rate(hearth_restore_total[5m])", "no series hearth_restore_total"),
        ("hearth_restores_total{verb=\"x\"}", "no label verb"),
        ("hearth_restores_total{plan=\"resume_on_load|resume\"}", "never \"resume\""),
        ("hearth_socket_wait_duration_seconds_bucket{le=\"0.7\"}", "never \"0.7\""),
        ("sum by (op, stat) (hearth_operations_total{job=~\"$job\",op!~\"$op\"})", "a label stat"),
    ] {
        let found = problems(&figures, text);
        assert!(found.len() == 1 && found[0].contains(problem), "{text}: {found:?}");
    }
    let fine = "sum by (job, plan) (hearth_restores_total{job=\"any\", plan=~\"resume_on_load|load_resume\"})";
    assert_eq!(problems(&figures, fine), [""; 0]);
}

/// A budget between two bounds would be compared with a guess.
#[tokio::test]
async fn every_backend_has_a_budget_and_every_budget_is_a_buckets_bound() {
    let server = Server::new().await;
    let figures = a_day(&server).await;
    let rules = read("deploy/monitoring/alerts.yaml");
    for backend in Backend::ALL {
        assert!(rules.contains(&format!("labels: {{backend: {backend}}}")), "alerts.yaml: no budget for {backend}");
    }
    let bounds = figures.values("hearth_operation_duration_seconds_bucket", "le");
    let budgets: Vec<&str> = rules.split("vector(").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(!budgets.is_empty());
    for budget in budgets {
        assert!(bounds.contains(budget), "{budget} is none of {bounds:?}");
    }
}

#[test]
fn the_dashboards_panels_are_whole_and_do_not_overlap() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{title}: its id is another's");
        let place = |side| panel["gridPos"][side].as_u64().expect("a place");
        assert!(place("x") + place("w") <= 24, "{title} is wider than the page");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{title} lies on another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()), "{title}: what does it show?");
        let unit = [&panel["fieldConfig"]["defaults"]["unit"], &panel["options"]["yAxis"]["unit"]];
        assert!(unit.iter().any(|unit| unit.is_string()), "{title}: of what unit?");
        let targets = panel["targets"].as_array().expect("queries");
        let references: BTreeSet<_> = targets.iter().filter_map(|target| target["refId"].as_str()).collect();
        assert!(!targets.is_empty() && references.len() == targets.len(), "{title}");
        for target in targets {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}: a source that others do not have");
            let query = target["expr"].as_str().expect("a query");
            assert!(query.contains("$job") && query.contains("$daemon"), "{title} shows all daemons at once: {query}");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let variables: BTreeSet<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    let mut texts = Vec::new();
    strings(&dashboard, &mut texts);
    for text in texts {
        for name in text.split('$').skip(1) {
            let name: String =
                name.trim_start_matches('{').chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(name.starts_with("__") || variables.contains(name.as_str()), "there is no variable {name}: {text}");
        }
    }
}

#[tokio::test]
async fn the_reference_has_every_series_with_its_labels_and_no_other() {
    let server = Server::new().await;
    let figures = a_day(&server).await;
    let reference = read("docs/metrics.md");
    for (name, kind) in &figures.families {
        let row = reference.lines().find(|line| line.starts_with(&format!("| `{name}` ")));
        let row = row.unwrap_or_else(|| panic!("docs/metrics.md: no row for {name}"));
        assert!(row.contains(kind.as_str()), "{name} is a {kind}: {row}");
        let labels = figures.samples.iter().filter(|sample| sample.name.starts_with(name.as_str()));
        let labels: BTreeSet<&String> = labels.flat_map(|sample| sample.labels.keys()).collect();
        for label in labels.into_iter().filter(|label| *label != "le") {
            assert!(row.contains(&format!("`{label}`")), "docs/metrics.md: {name} has a label {label}");
        }
    }
    for named in references(&reference) {
        let known = figures.names().contains(named.name.as_str()) || figures.families.contains_key(&named.name);
        assert!(known, "docs/metrics.md: there is no {}", named.name);
    }
    for (label, series) in
        [("plan", "hearth_restores_total"), ("end", "hearth_socket_waits_total"), ("outcome", "hearth_recovered_total")]
    {
        for value in figures.values(series, label) {
            assert!(reference.contains(&format!("`{value}`")), "docs/metrics.md: what is {label} {value}?");
        }
    }
}

/// `cargo xtask ci monitoring` gets promtool and says where it is.
#[tokio::test]
async fn promtool_finds_nothing_to_say_about_the_metrics() {
    let server = Server::new().await;
    let figures = a_day(&server).await;
    let promtool = std::env::var_os("HEARTH_PROMTOOL").unwrap_or_else(|| "promtool".into());
    let started = Command::new(&promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match started {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: promtool is not there: `cargo xtask ci monitoring` unpacks it");
            return;
        }
        started => started.expect("promtool starts"),
    };
    // Dropped at the end of the statement: promtool reads to the end.
    child.stdin.take().expect("piped").write_all(figures.text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}: {}", output.status, String::from_utf8_lossy(&said));
}
