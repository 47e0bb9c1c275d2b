//! The data directory: where models, certificates and the running mesh are on this machine.

use std::{
    collections::BTreeMap,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::advice::Advice;

/// The environment as it was when the program started; nothing else reads it.
pub(crate) type Variables = BTreeMap<String, String>;

/// The data directory and what is where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Home {
    data: PathBuf,
    /// Nobody asked for another place: commands find it without being told.
    is_default: bool,
}

impl Home {
    /// The flag, else `TAMIS_DATA_DIR`, else `$XDG_DATA_HOME/tamis`, else `~/.local/share/tamis`.
    pub(crate) fn find(flag: Option<PathBuf>, variables: &Variables) -> anyhow::Result<Self> {
        let standard = standard(variables);
        let variable = variables.get("TAMIS_DATA_DIR").filter(|text| !text.is_empty()).map(PathBuf::from);
        let Some(data) = flag.or(variable).or_else(|| standard.clone()) else {
            let help = "name one with --data-dir or TAMIS_DATA_DIR";
            return Err(Advice::new("there is no data directory: neither HOME nor TAMIS_DATA_DIR is set", help).into());
        };
        // Children and pasted commands run elsewhere: only an absolute path means the same there.
        let data = std::path::absolute(data)?;
        Ok(Self { is_default: standard.is_some_and(|standard| standard == data), data })
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn is_default(&self) -> bool {
        self.is_default
    }

    pub(crate) fn certs(&self) -> PathBuf {
        self.data.join("certs")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.data.join("run")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.run().join("logs")
    }
}

/// Makes a folder for its owner only, if it is not there; those above it are as the user's other folders.
pub(crate) fn private_folder(path: &Path) -> anyhow::Result<()> {
    let make = || {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
    };
    make().with_context(|| format!("cannot make the folder {}", path.display()))
}

fn standard(variables: &Variables) -> Option<PathBuf> {
    let absolute = |name: &str| variables.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let share = absolute("XDG_DATA_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/share")));
    share.map(|share| share.join("tamis"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(flag: Option<&str>, variables: &[(&str, &str)], data: &str, is_default: bool) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let home = Home::find(flag.map(PathBuf::from), &variables).unwrap();
        assert_eq!(home, Home { data: data.into(), is_default });
    }

    #[test]
    fn the_flag_goes_before_the_variable() {
        check(Some("/flag"), &[("TAMIS_DATA_DIR", "/variable"), ("HOME", "/home/a")], "/flag", false);
    }

    #[test]
    fn the_variable_goes_before_the_standard_place() {
        check(None, &[("TAMIS_DATA_DIR", "/variable"), ("HOME", "/home/a")], "/variable", false);
    }

    #[test]
    fn the_standard_place_follows_xdg() {
        check(None, &[("XDG_DATA_HOME", "/xdg"), ("HOME", "/home/a")], "/xdg/tamis", true);
        check(None, &[("HOME", "/home/a")], "/home/a/.local/share/tamis", true);
    }

    #[test]
    fn relative_and_empty_variables_are_passed_over_as_xdg_asks() {
        check(None, &[("XDG_DATA_HOME", "xdg"), ("HOME", "/home/a")], "/home/a/.local/share/tamis", true);
        check(None, &[("TAMIS_DATA_DIR", ""), ("HOME", "/home/a")], "/home/a/.local/share/tamis", true);
    }

    #[test]
    fn the_standard_place_by_another_way_is_still_standard() {
        let data = "/home/a/.local/share/tamis";
        check(Some(data), &[("HOME", "/home/a")], data, true);
    }

    #[test]
    fn no_home_is_said() {
        let error = Home::find(None, &Variables::new()).unwrap_err();
        assert!(crate::advice::report(&error).contains("--data-dir"));
    }
}
