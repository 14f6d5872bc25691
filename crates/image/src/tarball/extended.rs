//! PAX records: what they say instead of, or beyond, the ustar header.
//!
//! In: the data of an `x` or `g` entry. Out: [`Extensions`]. Unknown records are ignored, as the
//! standard asks.

#[derive(Debug, Clone, Default)]
pub(super) struct Extensions {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<PaxSparse>,
}

/// `GNU.sparse.*` records.
#[derive(Debug, Clone, Default)]
pub(super) struct PaxSparse {
    pub(super) major: u64,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Alternating offsets and lengths.
    pub(super) numbers: Vec<u64>,
}

impl Extensions {
    /// These, and where they say nothing, the archive's global ones.
    pub(super) fn over(mut self, global: &Self) -> Self {
        self.path = self.path.or_else(|| global.path.clone());
        self.link = self.link.or_else(|| global.link.clone());
        self.size = self.size.or(global.size);
        self.uid = self.uid.or(global.uid);
        self.gid = self.gid.or(global.gid);
        self.mtime = self.mtime.or(global.mtime);
        for (name, value) in &global.xattrs {
            if !self.xattrs.iter().any(|(own, _)| own == name) {
                self.xattrs.push((name.clone(), value.clone()));
            }
        }
        self
    }

    /// Reads `<length> <key>=<value>\n` records.
    pub(super) fn read_pax(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() && data[0] != 0 {
            let cut = || "an extended header is cut off or malformed".to_owned();
            let space = data.iter().take(20).position(|b| *b == b' ').ok_or_else(cut)?;
            let len = usize::try_from(number(&data[..space]).ok_or_else(cut)?).map_err(|_| cut())?;
            if len <= space + 1 || len > data.len() || data[len - 1] != b'\n' {
                return Err(cut());
            }
            let record = &data[space + 1..len - 1];
            let equals = record.iter().position(|b| *b == b'=').ok_or_else(cut)?;
            self.record(&record[..equals], &record[equals + 1..])?;
            data = &data[len..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let bad = || {
            let (key, value) = (String::from_utf8_lossy(key), String::from_utf8_lossy(value));
            format!("an extended header has {key}={value:?}, which is not a number")
        };
        let optional = |value: &[u8]| {
            if value.is_empty() { Ok(None) } else { number(value).map(Some).ok_or_else(bad) }
        };
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.retain(|(own, _)| own != name);
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            let sparse = self.sparse.get_or_insert_default();
            match key {
                b"major" => sparse.major = number(value).ok_or_else(bad)?,
                b"name" => sparse.name = Some(value.to_vec()),
                b"size" | b"realsize" => sparse.real_size = Some(number(value).ok_or_else(bad)?),
                b"offset" | b"numbytes" => sparse.numbers.push(number(value).ok_or_else(bad)?),
                b"map" => {
                    let numbers: Option<Vec<u64>> =
                        value.split(|b| *b == b',').filter(|part| !part.is_empty()).map(number).collect();
                    sparse.numbers = numbers.ok_or_else(bad)?;
                }
                _ => {}
            }
            return Ok(());
        }
        match key {
            b"path" => self.path = (!value.is_empty()).then(|| value.to_vec()),
            b"linkpath" => self.link = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => self.size = optional(value)?,
            b"uid" => self.uid = optional(value)?,
            b"gid" => self.gid = optional(value)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value).ok_or_else(bad)?) },
            _ => {}
        }
        Ok(())
    }
}

pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]seconds[.fraction]`.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(number(parts.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = parts.next().filter(|f| !f.is_empty()) {
        let digits: Vec<u8> = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9).collect();
        number(fraction.get(..9).unwrap_or(fraction))?;
        nanos = u32::try_from(number(&digits)?).ok()?;
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_round_down() {
        assert_eq!(time(b"1700000000.25"), Some((1_700_000_000, 250_000_000)));
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"1.1234567899"), Some((1, 123_456_789)));
        assert_eq!(time(b"x"), None);
        assert_eq!(time(b"1.x"), None);
    }

    #[test]
    fn a_malformed_record_is_refused_and_an_unknown_one_ignored() {
        let mut own = Extensions::default();
        own.read_pax(b"12 comment=x\n13 path=a\nb=c\n").expect_err("wrong length");
        own.read_pax(b"14 comment=hi\n10 uid=77\n").expect("well formed");
        assert_eq!(own.uid, Some(77));
        own.read_pax(b"99 path=x\n").expect_err("longer than the header");
        own.read_pax(b"10 uid=-7\n").expect_err("not a number");
    }
}
