//! Settings as they were given, each with its place: one list, whatever they come from.
//!
//! Numbers and booleans of the file become texts here, so that a value is parsed in one way.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use hearth_store::lookup::similar;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) key: &'static str,
    pub(super) text: String,
    pub(super) source: Source,
}

/// Where a setting was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    File { path: PathBuf, line: usize },
    Variable(String),
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// What a file says.
pub(super) fn from_file(path: &Path, text: &str, keys: &[&'static str]) -> Result<Vec<Given>, ConfigError> {
    let file = File { path, text, keys };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        path: path.to_owned(),
        line: file.line(error.span().map_or(0, |span| span.start)),
        message: error.message().to_owned(),
    })?;
    let mut given = Vec::new();
    file.walk(table.get_ref(), "", &mut given)?;
    Ok(given)
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
    keys: &'a [&'static str],
}

impl File<'_> {
    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    fn walk(&self, table: &DeTable<'_>, prefix: &str, given: &mut Vec<Given>) -> Result<(), ConfigError> {
        for (name, value) in table {
            let path = format!("{prefix}{}", name.get_ref());
            let line = self.line(name.span().start);
            if let DeValue::Table(inner) = value.get_ref() {
                self.walk(inner, &format!("{path}."), given)?;
                continue;
            }
            let source = Source::File { path: self.path.to_owned(), line };
            let key = self.keys.iter().find(|key| **key == path).ok_or_else(|| ConfigError::Unknown {
                place: source.to_string(),
                nearest: similar(&path, self.keys.iter().copied()),
                key: path.clone(),
            })?;
            let text = scalar(value.get_ref()).ok_or_else(|| ConfigError::Value {
                key,
                source_of_value: source.to_string(),
                problem: "must be one value, not a list".into(),
            })?;
            given.push(Given { key, text, source });
        }
        Ok(())
    }
}

fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        DeValue::Float(number) => Some(number.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Datetime(time) => Some(time.to_string()),
        DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// What the environment says. Other variables may begin with `HEARTH_` too; one that begins with
/// a section's name is meant as a setting, and must be one.
pub(super) fn from_environment(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
    keys: &[&'static str],
) -> Result<Vec<Given>, ConfigError> {
    let variables: Vec<String> = keys.iter().map(|key| variable(key)).collect();
    let sections: Vec<String> =
        keys.iter().filter_map(|key| key.split_once('.')).map(|(section, _)| variable(section) + "_").collect();
    let mut given = Vec::new();
    for (name, value) in environment {
        let Some(name) = name.to_str() else { continue };
        let known = match name {
            // The short form that everybody tries first.
            "HEARTH_LOG" => keys.iter().find(|key| **key == "log.level"),
            _ => variables.iter().position(|known| known == name).map(|at| &keys[at]),
        };
        let source = Source::Variable(name.to_owned());
        match (known, value.into_string()) {
            (Some(key), Ok(text)) => given.push(Given { key, text, source }),
            (Some(key), Err(_)) => {
                let problem = "is not UTF-8".into();
                return Err(ConfigError::Value { key, source_of_value: source.to_string(), problem });
            }
            (None, _) if sections.iter().any(|section| name.starts_with(section.as_str())) => {
                let lower: Vec<String> = variables.iter().map(|name| name.to_lowercase()).collect();
                let nearest = similar(name, lower.iter().map(String::as_str));
                let nearest = nearest.into_iter().map(|name| name.to_uppercase()).collect();
                return Err(ConfigError::Unknown { place: "environment".into(), key: name.to_owned(), nearest });
            }
            (None, _) => {}
        }
    }
    Ok(given)
}

fn variable(key: &str) -> String {
    format!("HEARTH_{}", key.replace('.', "_").to_uppercase())
}
