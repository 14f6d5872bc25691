//! `deploy/monitoring` as Prometheus' own tool sees it: rules, their unit tests, the example
//! configuration, and every query of the dashboard.
//!
//! In: promtool and the files. Out: success only if it has nothing to say. What the files say about
//! the daemon is checked by the daemon's tests, which give its metrics to promtool too.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::process;
use crate::workspace::Workspace;

/// Gives everything to promtool.
pub fn run(workspace: &Workspace, promtool: &Path) -> Result<()> {
    let files = workspace.root.join("deploy/monitoring");
    let promtool = |arguments: &[&str]| {
        let mut command = Command::new(promtool);
        command.args(arguments).current_dir(&files);
        command
    };
    process::run(&mut promtool(&["check", "rules", "alerts.yaml"]))?;
    process::run(&mut promtool(&["test", "rules", "alerts_test.yaml"]))?;
    // Syntax only: the file with the token is there on the host that it is for.
    process::run(&mut promtool(&["check", "config", "--syntax-only", "prometheus.yaml"]))?;

    let path = files.join("dashboard.json");
    let dashboard = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let dashboard = serde_json::from_str(&dashboard).with_context(|| format!("parse {}", path.display()))?;
    let rules = queries_as_rules(&workspace.target, &dashboard)?;
    process::run(promtool(&["check", "rules"]).arg(rules)).context("the dashboard's queries")
}

/// A file of rules, each with one query of the dashboard: promtool reads queries only there.
fn queries_as_rules(target: &Path, dashboard: &Value) -> Result<PathBuf> {
    let rules: Vec<Value> = queries(dashboard)
        .into_iter()
        .enumerate()
        .map(|(number, (panel, query))| {
            // As an alert, whose name may be any text; the number keeps two of one panel apart.
            json!({"alert": format!("{panel}, query {}", number + 1), "expr": query})
        })
        .collect();
    anyhow::ensure!(!rules.is_empty(), "the dashboard has no queries");
    let path = target.join("dashboard-queries.yaml");
    // JSON is YAML.
    let text = json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string();
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Every panel's queries, with its title, as Prometheus gets them.
fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for panel in list(&dashboard["panels"]) {
        let title = panel["title"].as_str().unwrap_or_default();
        for target in list(&panel["targets"]) {
            let query = target["expr"].as_str().unwrap_or_default();
            // Grafana puts in durations for these; the variables stand in quotes, where any text may.
            let query = query.replace("$__rate_interval", "5m").replace("$__range", "6h");
            found.push((title.to_owned(), query));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_is_found_with_its_panel_and_with_durations() {
        let dashboard = json!({"panels": [
            {"type": "row", "title": "Row"},
            {"title": "Two", "targets": [{"expr": "rate(a{b=\"$b\"}[$__rate_interval])"}, {"expr": "c[$__range]"}]},
        ]});
        let wanted = [("Two", "rate(a{b=\"$b\"}[5m])"), ("Two", "c[6h]")];
        assert_eq!(queries(&dashboard), wanted.map(|(title, query)| (title.to_owned(), query.to_owned())));
    }

    #[test]
    fn a_dashboard_without_queries_is_no_dashboard() {
        let target = tempfile::tempdir().expect("a directory");
        assert!(queries_as_rules(target.path(), &json!({"panels": []})).is_err());
    }
}
