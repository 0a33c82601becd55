//! Becoming somebody who may do less, once everything is bound that only root may bind.
//!
//! The C library changes the user of all threads together, which the kernel by itself does not: it
//! knows users of threads only, and one that stayed root would be a way back.

use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, getgroups, setgid, setgroups, setuid};

/// Whom to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// The user's name.
    pub name: String,
    /// The user.
    pub user: u32,
    /// The only group.
    pub group: u32,
}

impl RunAs {
    /// Looks a user up, with the group that it is in by default.
    ///
    /// # Errors
    /// There is none.
    pub fn find(name: &str) -> Result<Self, String> {
        match User::from_name(name) {
            Ok(Some(user)) => Ok(Self {
                name: name.to_owned(),
                user: user.uid.as_raw(),
                group: user.gid.as_raw(),
            }),
            Ok(None) => Err(format!("there is no user \"{name}\"; make one, or name another")),
            Err(error) => Err(format!("cannot look for user \"{name}\": {error}")),
        }
    }

    /// Becomes that user for good. Does nothing if the process is that user already.
    ///
    /// # Errors
    /// The process may not, or could become root again.
    pub fn become_it(&self) -> Result<(), String> {
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
        if geteuid() == user && !user.is_root() {
            return Ok(());
        }
        let cannot = |error| {
            format!("cannot become user \"{}\": {error}; start as root, or leave it out", self.name)
        };
        setgroups(&[group]).map_err(cannot)?;
        setgid(group).map_err(cannot)?;
        setuid(user).map_err(cannot)?;
        let is_it = geteuid() == user && getegid() == group;
        let has_others = getgroups().map_or(true, |groups| groups.iter().any(|it| *it != group));
        if !is_it || has_others || (!user.is_root() && setuid(Uid::from_raw(0)).is_ok()) {
            return Err(format!("user \"{}\" could not be become for good", self.name));
        }
        Ok(())
    }
}

/// Looks a group up.
///
/// # Errors
/// There is none.
pub fn find_group(name: &str) -> Result<u32, String> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err(format!("there is no group \"{name}\"; make one, or name another")),
        Err(error) => Err(format!("cannot look for group \"{name}\": {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_are_found_by_name_and_strangers_are_not() {
        assert_eq!(RunAs::find("root").map(|root| (root.user, root.group)), Ok((0, 0)));
        assert_eq!(find_group("root"), Ok(0));
        assert!(RunAs::find("nobody-at-all").is_err_and(|told| told.contains("no user")));
        assert!(find_group("nobody-at-all").is_err_and(|told| told.contains("no group")));
    }
}
