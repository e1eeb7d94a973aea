//! The names of a node.

use std::ffi::OsStr;
use std::sync::Arc;

use crate::fs::NodeId;

/// A name, shared by the directory that has it and the node that it leads to.
pub(super) type Name = Arc<OsStr>;

/// Marks a name as one that the lower side has, too. Node numbers of directories leave the bit free.
const FOUND: u64 = 1 << 63;

/// The names of a node; most have exactly one.
#[derive(Debug)]
pub(super) enum Names {
    One(Place),
    Other(Others),
}

/// A vector in place would make every node larger.
type Others = Box<Vec<Place>>;

/// A directory with a name in it.
#[derive(Debug)]
pub(super) struct Place {
    parent_and_found: u64,
    name: Name,
}

impl Place {
    fn parent(&self) -> NodeId {
        NodeId(self.parent_and_found & !FOUND)
    }

    fn is_found(&self) -> bool {
        self.parent_and_found & FOUND != 0
    }

    fn is(&self, parent: NodeId, name: &OsStr) -> bool {
        self.parent() == parent && &*self.name == name
    }
}

impl Default for Names {
    fn default() -> Self {
        Self::Other(Box::default())
    }
}

impl Names {
    fn places(&self) -> &[Place] {
        match self {
            Self::One(place) => std::slice::from_ref(place),
            Self::Other(places) => places,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, &OsStr)> {
        self.places().iter().map(|place| (place.parent(), &*place.name))
    }

    pub(super) fn len(&self) -> usize {
        self.places().len()
    }

    pub(super) fn add(&mut self, parent: NodeId, name: Name, found: bool) {
        let place = Place { parent_and_found: parent.0 | if found { FOUND } else { 0 }, name };
        *self = match std::mem::take(self) {
            Self::Other(places) if places.is_empty() => Self::One(place),
            Self::Other(mut places) => {
                places.push(place);
                Self::Other(places)
            }
            Self::One(first) => Self::Other(Box::new(vec![first, place])),
        };
    }

    pub(super) fn remove(&mut self, parent: NodeId, name: &OsStr) {
        match self {
            Self::One(place) if place.is(parent, name) => *self = Self::default(),
            Self::One(_) => {}
            Self::Other(places) => places.retain(|place| !place.is(parent, name)),
        }
    }

    /// Returns a name that the lower side has, too.
    pub(super) fn found(&self) -> Option<(NodeId, &OsStr)> {
        let place = self.places().iter().find(|place| place.is_found())?;
        Some((place.parent(), &*place.name))
    }

    pub(super) fn is_found(&self, parent: NodeId, name: &OsStr) -> bool {
        self.places().iter().any(|place| place.is(parent, name) && place.is_found())
    }

    pub(super) fn all_found(&self) -> bool {
        self.places().iter().all(Place::is_found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_and_go_and_remember_where_they_are_from() {
        let (dir, mut names) = (NodeId(7), Names::default());
        names.add(dir, OsStr::new("a").into(), true);
        assert!(names.all_found());
        names.add(dir, OsStr::new("b").into(), false);
        assert_eq!((names.len(), names.all_found()), (2, false));
        assert!(names.is_found(dir, OsStr::new("a")) && !names.is_found(dir, OsStr::new("b")));
        names.remove(dir, OsStr::new("a"));
        assert_eq!((names.len(), names.found()), (1, None));
        names.remove(dir, OsStr::new("b"));
        assert_eq!(names.len(), 0);
    }
}
