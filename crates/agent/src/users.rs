//! Who a process runs as: names and numbers out of the image's own `/etc/passwd` and
//! `/etc/group`, without the C library's lookups.

use std::fs;

/// A user with its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: String,
}

/// Finds `user[:group]`, names or numbers; empty is root.
pub fn find(wanted: &str) -> Result<User, String> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    resolve(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, group_name) = wanted.split_once(':').map_or((wanted, None), |(user, group)| (user, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6 && (fields[0] == name || (number.is_some() && fields[2].parse() == Ok(number.unwrap_or(0))))
    });
    let mut user = match (&entry, number) {
        (Some(fields), _) => User {
            uid: fields[2].parse().map_err(|_| format!("user {name} has no number in /etc/passwd"))?,
            gid: fields[3].parse().map_err(|_| format!("user {name} has no group in /etc/passwd"))?,
            groups: Vec::new(),
            home: fields[5].to_owned(),
        },
        (None, Some(uid)) => {
            let home = if uid == 0 { "/root" } else { "/" };
            User { uid, gid: 0, groups: Vec::new(), home: home.to_owned() }
        }
        (None, None) => return Err(format!("user {name} is not in the image's /etc/passwd")),
    };
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3);
    if let Some(wanted) = group_name {
        let gid = groups().find(|fields| fields[0] == wanted).and_then(|fields| fields[2].parse().ok());
        user.gid = gid
            .or_else(|| wanted.parse().ok())
            .ok_or_else(|| format!("group {wanted} is not in the image's /etc/group"))?;
    } else if let Some(fields) = &entry {
        let member = |list: &&str| list.split(',').any(|member| member == fields[0]);
        user.groups = groups().filter(|g| g.get(3).is_some_and(member)).filter_map(|g| g[2].parse().ok()).collect();
    }
    if !user.groups.contains(&user.gid) {
        user.groups.insert(0, user.gid);
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/var/www:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nlogs:x:4:syslog,www\n";

    fn user(wanted: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        resolve(wanted, PASSWD, GROUP).map(|u| (u.uid, u.gid, u.groups, u.home))
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(user(""), Ok((0, 0, vec![0], "/root".into())));
        assert_eq!(user("www"), Ok((33, 33, vec![33, 4], "/var/www".into())));
        assert_eq!(user("33"), user("www"));
        assert_eq!(user("www:logs"), Ok((33, 4, vec![4], "/var/www".into())));
        assert_eq!(user("1000"), Ok((1000, 0, vec![0], "/".into())));
        assert_eq!(user("1000:1001"), Ok((1000, 1001, vec![1001], "/".into())));
    }

    #[test]
    fn unknown_names_are_said() {
        assert_eq!(user("nobody"), Err("user nobody is not in the image's /etc/passwd".into()));
        assert_eq!(user("www:x"), Err("group x is not in the image's /etc/group".into()));
    }
}
