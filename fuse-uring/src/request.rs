//! A request, as a handler sees it.

use crate::abi::{InHeader, Opcode};
use crate::device::Device;
use crate::operation::Operation;

/// Who asks for what.
#[derive(Debug)]
pub struct Request<'a> {
    header: &'a InHeader,
    operation: Operation<'a>,
    group: Option<u32>,
    device: &'a Device,
}

impl<'a> Request<'a> {
    pub(crate) const fn new(
        header: &'a InHeader,
        operation: Operation<'a>,
        group: Option<u32>,
        device: &'a Device,
    ) -> Self {
        Self { header, operation, group, device }
    }

    /// Returns the number that no other unanswered request of the session has.
    #[must_use]
    pub const fn unique(&self) -> u64 {
        self.header.unique
    }

    /// Returns the node it is about.
    #[must_use]
    pub const fn node(&self) -> u64 {
        self.header.nodeid
    }

    /// Returns who asks.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.header.uid
    }

    /// Returns the group of who asks.
    #[must_use]
    pub const fn gid(&self) -> u32 {
        self.header.gid
    }

    /// Returns the process that asks; zero where it is none that the server could see.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.header.pid
    }

    /// Returns the group that a new file may take from its directory, as the caller is a member. Told where
    /// [`InitFlags::CREATE_SUPP_GROUP`](crate::InitFlags::CREATE_SUPP_GROUP) was granted.
    #[must_use]
    pub const fn supplementary_group(&self) -> Option<u32> {
        self.group
    }

    /// Returns the number of what it asks for, as the protocol counts: good for counting and for logs.
    #[must_use]
    pub const fn opcode(&self) -> u32 {
        self.header.opcode
    }

    /// Returns what that is called; `?` where this crate does not know.
    #[must_use]
    pub fn name(&self) -> &'static str {
        operation_name(self.header.opcode)
    }

    /// Returns what it asks for.
    #[must_use]
    pub const fn operation(&self) -> &Operation<'a> {
        &self.operation
    }

    /// Returns the session's device, where backing files are registered.
    #[must_use]
    pub const fn device(&self) -> &'a Device {
        self.device
    }
}

/// Returns what the operation of a number is called in the protocol; `?` where this crate does not know.
#[must_use]
pub fn operation_name(opcode: u32) -> &'static str {
    Opcode::new(opcode).map_or("?", Opcode::name)
}
