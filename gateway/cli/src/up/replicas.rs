//! How many processes each service has.

use std::str::FromStr;

use crate::role::Role;

/// Most processes of one service on one machine.
const REPLICAS_MAX: u16 = 64;

/// Processes of each service, `embedding=2,vision=0`; one for what is not named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Replicas([u16; 3]);

impl Replicas {
    /// One of each.
    pub(crate) const ONE: Self = Self([1; 3]);

    /// The services and their numbers, those without any left out.
    pub(crate) fn services(self) -> impl Iterator<Item = (Role, u16)> {
        Role::SERVICES.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }
}

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut counts = [None; 3];
        for part in text.split(',') {
            let (name, count) = part.split_once('=').ok_or_else(|| format!("`{part}` is not SERVICE=NUMBER"))?;
            let place = Role::SERVICES.iter().position(|role| role.name() == name.trim());
            let place = place.ok_or_else(|| {
                format!("`{}` is no service; there are embedding, classification and vision", name.trim())
            })?;
            let count = count.trim().parse::<u16>().ok().filter(|count| *count <= REPLICAS_MAX);
            let count = count.ok_or_else(|| format!("`{part}`: the number must lie between 0 and {REPLICAS_MAX}"))?;
            if counts[place].replace(count).is_some() {
                return Err(format!("`{}` is named twice", name.trim()));
            }
        }
        let counts = counts.map(|count| count.unwrap_or(1));
        if counts == [0; 3] { Err("a mesh needs at least one service".into()) } else { Ok(Self(counts)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_has_one() {
        assert_eq!("embedding=2".parse(), Ok(Replicas([2, 1, 1])));
        assert_eq!("vision=3, embedding=0".parse(), Ok(Replicas([0, 1, 3])));
    }

    #[test]
    fn a_service_without_processes_is_left_out() {
        let replicas: Replicas = "classification=0,embedding=2".parse().unwrap();
        assert_eq!(replicas.services().collect::<Vec<_>>(), [(Role::Embedding, 2), (Role::Vision, 1)]);
    }

    #[test]
    fn mistakes_say_what_may_be_written() {
        let check = |text: &str, part: &str| {
            let message = text.parse::<Replicas>().unwrap_err();
            assert!(message.contains(part), "{message}");
        };
        check("", "SERVICE=NUMBER");
        check("embedding", "SERVICE=NUMBER");
        check("embeding=1", "there are embedding");
        check("gateway=2", "there are embedding");
        check("vision=-1", "between 0 and 64");
        check("vision=65", "between 0 and 64");
        check("vision=1,vision=2", "named twice");
        check("vision=0,embedding=0,classification=0", "at least one");
    }
}
