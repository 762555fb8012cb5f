//! What a unit changed in a client's names, and what is taken for done on its server as soon as it is sent.
//!
//! Invariant: what a unit that failed, or is to run again, did to names and to what is believed to be on the server can be
//! undone. Pure. Must not know: sockets, messages.

use super::prepared::{self, NamedStatement, Names, UnnamedBefore};
use crate::backend::carried::{Carried, OwnNames, PreparedHere};
use crate::relay::answer::Unkept;
use crate::wire::reply;

/// What a unit changed in the client's names, in order.
#[derive(Debug, Default)]
pub struct Journal {
    /// Names that mean something else now, and what they meant before.
    changes: Vec<(Box<[u8]>, Option<NamedStatement>)>,
    /// By token: what did not happen if the reply of that token never comes.
    promises: Vec<Promise>,
}

/// What is taken for done as soon as it is sent (or answered here).
#[derive(Debug, Default)]
pub(super) enum Promise {
    /// The statement of this identity is on the server, and may have the client's name.
    Prepared(u64, Option<Box<[u8]>>),
    /// This statement is not there any more.
    Gone(PreparedHere),
    /// The client's unnamed statement is another than before, or none.
    Unnamed(UnnamedBefore),
    /// The client's unnamed statement is there.
    UnnamedHere,
    /// The client's name does not mean any more what it did.
    Name(Box<[u8]>, Option<NamedStatement>),
    /// The statement of the client's name, which the server did not have under it, is there.
    Found(Box<[u8]>),
    /// The server refuses to prepare what is there already.
    Again,
    /// The client is told the shape of the rows of the statement of this name and identity.
    Described(Box<[u8]>, u64),
    /// So is the client's unnamed statement of this count.
    DescribedUnnamed(u64),
    /// pgsteer is told, of the statement of this identity, which the client was told has this shape.
    Shape(u64, reply::Shape),
    /// The same of the unnamed statement.
    UnnamedShape(reply::Shape),
    /// Nothing that would have to be undone.
    #[default]
    Nothing,
}

/// A place in a journal. The default is its beginning.
#[derive(Debug, Clone, Copy, Default)]
pub struct Mark {
    changes: usize,
    promises: usize,
}

impl Journal {
    /// How far it has come.
    pub fn mark(&self) -> Mark {
        Mark { changes: self.changes.len(), promises: self.promises.len() }
    }

    /// Undoes everything: the unit is to be run again elsewhere.
    pub fn undo(&mut self, names: &mut Names) {
        self.undo_since(Mark::default(), names);
    }

    fn undo_since(&mut self, mark: Mark, names: &mut Names) {
        for (name, before) in self.changes.drain(mark.changes..).rev() {
            names.restore(&name, before);
        }
        for promise in self.promises.drain(mark.promises..).rev() {
            if let Promise::Unnamed(before) = promise {
                names.restore_unnamed(before);
            }
        }
    }

    /// These promises were not kept: what the server does not have after all.
    pub fn correct(&self, failed: &[u32], carried: &mut Carried) {
        // The last first: of a Close and a Parse that were both skipped, what was there before stays.
        for &token in failed.iter().rev() {
            let Some(promise) = self.promises.get(at(token)) else { continue };
            match promise {
                Promise::Prepared(id, _) => carried.prepared.remove(*id),
                Promise::Gone(here) => {
                    // Nor has anything that came behind it made room for a client's own names.
                    carried.own_names = None;
                    carried.prepared.insert(*here);
                }
                Promise::Unnamed(_) | Promise::UnnamedHere => carried.unnamed = None,
                Promise::Found(name) => {
                    if let Some(own) = &mut carried.own_names {
                        own.miss(name);
                    }
                }
                Promise::Name(..)
                | Promise::Again
                | Promise::Described(..)
                | Promise::DescribedUnnamed(_)
                | Promise::Shape(..)
                | Promise::UnnamedShape(_)
                | Promise::Nothing => {}
            }
        }
    }

    /// What was translated since is not sent: forgets all of it.
    pub fn take_back(&mut self, since: Mark, names: &mut Names, carried: &mut Carried) {
        let all: Vec<u32> =
            (since.promises..self.promises.len()).filter_map(|token| u32::try_from(token).ok()).collect();
        self.correct(&all, carried);
        self.undo_since(since, names);
    }

    /// Whether a statement that the server was asked of since has rows of another shape than the client was told. What it has not
    /// said is too large to be the same.
    pub fn has_other_shapes(&self, since: Mark, shapes: &[(u32, reply::Shape)]) -> bool {
        let asked = self.promises.iter().zip(0u32..).skip(since.promises);
        asked.into_iter().any(|(promise, token)| match promise {
            Promise::Shape(_, told) | Promise::UnnamedShape(told) => {
                !shapes.iter().any(|(of, shape)| *of == token && shape.agrees(*told))
            }
            _ => false,
        })
    }

    /// The server has told these shapes of rows, by token.
    pub fn note_shapes(&self, shapes: &[(u32, reply::Shape)], names: &mut Names, carried: &mut Carried) {
        for &(token, shape) in shapes {
            match self.promises.get(at(token)) {
                Some(Promise::Described(name, id)) => {
                    names.tell(name, *id, shape);
                    carried.prepared.set_shape(*id, shape);
                }
                Some(Promise::DescribedUnnamed(count)) => {
                    if let Some(unnamed) = names.unnamed.as_mut().filter(|unnamed| unnamed.count == *count) {
                        unnamed.told = Some(shape.after(unnamed.told));
                    }
                }
                // What is there is not what the client described: it is not its unnamed statement.
                Some(Promise::UnnamedShape(told)) if !told.agrees(shape) => carried.unnamed = None,
                Some(Promise::Shape(id, _)) => carried.prepared.set_shape(*id, shape),
                _ => {}
            }
        }
    }

    /// The unit is over; these promises were not kept.
    pub fn settle(&mut self, unkept: &Unkept, names: &mut Names, carried: &mut Carried) {
        self.correct(&unkept.tokens, carried);
        for &token in unkept.tokens.iter().rev() {
            let Some(promise) = self.promises.get_mut(at(token)).map(std::mem::take) else { continue };
            match promise {
                Promise::Prepared(_, Some(name)) => names.restore(&name, None),
                // A Parse that fails takes the unnamed statement with it; one that is skipped does not.
                Promise::Unnamed(_) if unkept.refused == Some(token) => names.drop_unnamed(),
                Promise::Unnamed(before) => names.restore_unnamed(before),
                Promise::Name(name, before) => names.restore(&name, before),
                Promise::Prepared(_, None)
                | Promise::Found(_)
                | Promise::Again
                | Promise::UnnamedHere
                | Promise::Gone(..)
                | Promise::Described(..)
                | Promise::DescribedUnnamed(_)
                | Promise::Shape(..)
                | Promise::UnnamedShape(_)
                | Promise::Nothing => {}
            }
        }
        self.changes.clear();
        for promise in self.promises.drain(..) {
            if let Promise::Unnamed(before) = promise {
                names.forget_unnamed(before);
            }
        }
    }

    /// DEALLOCATE ALL was carried out before what has the token `from`: what was made behind it is all that there is.
    pub fn made_since(&self, from: u32, unkept: &Unkept) -> Made {
        let mut made = Made::default();
        for (promise, token) in self.promises.iter().zip(0..).skip(at(from)) {
            match promise {
                _ if unkept.tokens.contains(&token) => {}
                Promise::Prepared(id, name) => {
                    made.ids.push(*id);
                    made.names.extend(name.clone());
                }
                Promise::Name(name, _) => made.names.push(name.clone()),
                Promise::Again => made.unknown = true,
                _ => {}
            }
        }
        made
    }

    pub(super) fn rename(&mut self, name: &[u8], before: Option<&NamedStatement>) {
        self.changes.push((name.into(), before.cloned()));
    }

    pub(super) fn promise(&mut self, promise: Promise) -> u32 {
        let token = u32::try_from(self.promises.len()).unwrap_or(u32::MAX);
        self.promises.push(promise);
        token
    }
}

/// What there is after all was dropped.
#[derive(Debug, Default)]
pub struct Made {
    ids: Vec<u64>,
    names: Vec<Box<[u8]>>,
    /// Something else was made on the server, too, in place of what had that name there.
    pub unknown: bool,
}

impl Made {
    /// Forgets all but this.
    pub fn is_all(&self, names: &mut Names, carried: &mut Carried) {
        names.retain(|name| self.names.iter().any(|made| prepared::key(made) == name));
        carried.prepared.retain(|id| self.ids.contains(&id));
        carried.own_names = carried.own_names.take().map(|_| OwnNames::default());
    }
}

fn at(token: u32) -> usize {
    usize::try_from(token).unwrap_or(usize::MAX)
}
