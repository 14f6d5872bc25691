//! Which record a person means: by id, by name, or by a prefix of the id that only one has.
//!
//! Pure; the order is Hypeman's: exact id, exact name, unique prefix.

/// What a text leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup<T> {
    /// Just one.
    Found(T),
    /// None; these have names like it.
    NotFound {
        /// Names, the most similar first; at most [`SIMILAR`].
        similar: Vec<String>,
    },
    /// Several; one more letter may be enough.
    Ambiguous {
        /// Each as `name (id)`, or the id alone; at most [`CANDIDATES`].
        candidates: Vec<String>,
    },
}

/// The most similar names that are offered.
pub const SIMILAR: usize = 3;
/// The most candidates that are listed.
pub const CANDIDATES: usize = 10;

/// What a record is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
}

impl Called {
    fn spelled(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.clone(), |name| format!("{name} ({})", self.id))
    }
}

/// Finds the one of `all` that `text` means; the answer holds its id.
#[must_use]
pub fn resolve(text: &str, all: &[Called]) -> Lookup<String> {
    if let Some(one) = all.iter().find(|c| c.id == text) {
        return Lookup::Found(one.id.clone());
    }
    let named: Vec<&Called> = all.iter().filter(|c| c.name.as_deref() == Some(text)).collect();
    let meant = match named.as_slice() {
        [] if text.is_empty() => Vec::new(),
        [] => all.iter().filter(|c| c.id.starts_with(text)).collect(),
        _ => named,
    };
    match meant.as_slice() {
        [] => Lookup::NotFound { similar: similar(text, all.iter().map(|c| c.name.as_deref().unwrap_or(&c.id))) },
        [one] => Lookup::Found(one.id.clone()),
        several => Lookup::Ambiguous { candidates: several.iter().take(CANDIDATES).map(|c| c.spelled()).collect() },
    }
}

/// Those of `names` that somebody who wrote `text` may have meant, the nearest first.
#[must_use]
pub fn similar<'a>(text: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let text = text.to_lowercase();
    let far = text.chars().count().div_ceil(3).min(3);
    let mut near: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| {
            let part = text.len() >= 2 && (name.contains(&text) || (name.len() >= 3 && text.contains(name)));
            let distance = distance(&text, name);
            (part || distance <= far).then_some((distance, name))
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(SIMILAR).map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein's: letters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replace = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn called(id: &str, name: &str) -> Called {
        Called { id: id.into(), name: (!name.is_empty()).then(|| name.to_owned()) }
    }

    #[test]
    fn an_id_goes_before_a_name_and_a_name_before_a_prefix() {
        let all = [called("abc1", "web"), called("abd2", "abc1"), called("xyz3", "ab"), called("ab", "other")];
        assert_eq!(resolve("abc1", &all), Lookup::Found("abc1".into()));
        assert_eq!(resolve("web", &all), Lookup::Found("abc1".into()));
        assert_eq!(resolve("abd", &all), Lookup::Found("abd2".into()));
        assert_eq!(resolve("ab", &all), Lookup::Found("ab".into()));
        let all = &all[..3];
        assert_eq!(resolve("ab", all), Lookup::Found("xyz3".into()), "its name, though two ids begin so");
    }

    #[test]
    fn several_are_listed_and_none_offers_similar_names() {
        let all = [called("abc1", "web-1"), called("abd2", ""), called("xyz3", "db")];
        let candidates = vec!["web-1 (abc1)".to_owned(), "abd2".to_owned()];
        assert_eq!(resolve("ab", &all), Lookup::Ambiguous { candidates });
        assert_eq!(resolve("wbe-1", &all), Lookup::NotFound { similar: vec!["web-1".into()] });
        assert_eq!(resolve("web", &all), Lookup::NotFound { similar: vec!["web-1".into()] });
        assert_eq!(resolve("", &all), Lookup::NotFound { similar: vec![] });
        assert_eq!(resolve("nothing-like-it", &all), Lookup::NotFound { similar: vec![] });
    }

    #[test]
    fn one_name_on_two_records_is_ambiguous() {
        let all = [called("abc1", "before"), called("abd2", "before")];
        assert!(matches!(resolve("before", &all), Lookup::Ambiguous { candidates } if candidates.len() == 2));
    }
}
