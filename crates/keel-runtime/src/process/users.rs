//! From `user:group` to the numbers that the kernel wants, by the machine's own files.

use std::fs;
use std::path::PathBuf;

use crate::types::Identity;

/// The text of `/etc/passwd` and `/etc/group`.
pub(crate) struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    /// Reads them as they are now.
    pub(crate) fn read() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    /// Who `user` (`name`, `uid`, `name:group`, …; the platform's own user when absent) with the further `groups` is.
    /// `own` is the platform's uid and gid.
    pub(super) fn resolve(
        &self,
        user: Option<&str>,
        groups: &[String],
        own: (u32, u32),
    ) -> Result<Identity, String> {
        let found = self.find(user, groups, own)?;
        if found.switch && own.0 != 0 {
            let Identity { name, uid, gid, .. } = found;
            return Err(format!(
                "running as {name} ({uid}:{gid}) needs root; start `keel server` as root or remove `user`"
            ));
        }
        Ok(found)
    }

    /// As [`Self::resolve`], whether or not we may become that user.
    pub(crate) fn find(
        &self,
        user: Option<&str>,
        groups: &[String],
        own: (u32, u32),
    ) -> Result<Identity, String> {
        let own_name = own.0.to_string();
        let (user, group) = match user.filter(|user| !user.is_empty()) {
            Some(user) => match user.split_once(':') {
                Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
                None => (user, None),
            },
            None => (own_name.as_str(), None),
        };
        let line = self.passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|f| {
            f.len() >= 7 && (f[0] == user || (f[2] == user && user.parse::<u32>().is_ok()))
        });
        let (uid, primary, name, home) = match (&line, user.parse::<u32>()) {
            (Some(f), _) => {
                let number = |text: &str| {
                    text.parse::<u32>().map_err(|_| format!("/etc/passwd: bad entry for {user}"))
                };
                (number(f[2])?, number(f[3])?, f[0].to_owned(), PathBuf::from(f[5]))
            }
            (None, Ok(uid)) => {
                let gid = if uid == own.0 { own.1 } else { 0 };
                (uid, gid, uid.to_string(), PathBuf::from("/"))
            }
            (None, Err(_)) => {
                return Err(format!(
                    "there is no user {user:?} in /etc/passwd; add it or use a number"
                ));
            }
        };
        let gid = match group {
            Some(group) => self.group_id(group)?,
            None => primary,
        };
        let mut all = vec![gid];
        if group.is_none() {
            all.extend(self.memberships(&name));
        }
        for group in groups {
            all.push(self.group_id(group)?);
        }
        all.sort_unstable();
        all.dedup();
        let switch = uid != own.0 || gid != own.1 || (own.0 == 0 && !groups.is_empty());
        Ok(Identity { uid, gid, groups: all, name, home, switch })
    }

    fn group_id(&self, group: &str) -> Result<u32, String> {
        if let Ok(gid) = group.parse() {
            return Ok(gid);
        }
        self.group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|f| f.len() >= 3 && f[0] == group)
            .and_then(|f| f[2].parse().ok())
            .ok_or_else(|| {
                format!("there is no group {group:?} in /etc/group; add it or use a number")
            })
    }

    fn memberships(&self, name: &str) -> Vec<u32> {
        self.group
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .filter(|f| f.len() >= 4 && f[3].split(',').any(|member| member == name))
            .filter_map(|f| f[2].parse().ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/sh\n".into(),
            group: "root:x:0:\nweb:x:34:\nssl:x:50:other,web\n".into(),
        }
    }

    #[test]
    fn names_numbers_and_groups() {
        let of = |user: Option<&str>| accounts().resolve(user, &[], (0, 0)).unwrap();
        let web = of(Some("web"));
        assert_eq!((web.uid, web.gid, web.groups.as_slice()), (33, 34, &[34, 50][..]));
        assert_eq!(web.home, PathBuf::from("/var/www"));
        assert_eq!(of(Some("33")).name, "web");
        let odd = of(Some("1234:ssl"));
        assert_eq!((odd.uid, odd.gid, odd.groups.as_slice()), (1234, 50, &[50][..]));
        let own = of(None);
        assert_eq!((own.uid, own.switch, own.home), (0, false, PathBuf::from("/root")));
    }

    #[test]
    fn what_does_not_exist_or_needs_rights_is_said() {
        let error = accounts().resolve(Some("nobdy"), &[], (0, 0)).unwrap_err();
        assert!(error.contains("nobdy") && error.contains("/etc/passwd"), "{error}");
        let error = accounts().resolve(Some("web:nope"), &[], (0, 0)).unwrap_err();
        assert!(error.contains("/etc/group"), "{error}");
        let error = accounts().resolve(Some("web"), &[], (1000, 1000)).unwrap_err();
        assert!(error.contains("needs root"), "{error}");
        assert!(!accounts().resolve(Some("33:34"), &[], (33, 34)).unwrap().switch);
    }
}
