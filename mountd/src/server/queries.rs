//! Questions about mounts and cache: one call of the engine each.

use vout::proto::{Event, Failure};

use super::Server;
use super::failure::internal;

impl Server {
    pub(super) fn status(&self) -> Result<Event, Failure> {
        let mut status = self.workspace.status().map_err(|error| internal(&error))?;
        status.mounted_at = self.mounted_at();
        status.served = self.live().as_ref().map(|live| live.served());
        status.daemon_pid = std::process::id();
        status.running = self.views().values().map(|view| view.task().to_owned()).collect();
        status.running.sort();
        Ok(Event::Status(Box::new(status)))
    }

    pub(super) fn why(&self, task: &str) -> Result<Event, Failure> {
        let why = self.workspace.why(task).map_err(|error| internal(&error))?;
        Ok(Event::Why(why.map(Box::new)))
    }

    pub(super) fn cache_list(&self) -> Result<Event, Failure> {
        Ok(Event::Entries(self.workspace.entries().map_err(|error| internal(&error))?))
    }

    pub(super) fn cache_show(&self, id: &str) -> Result<Event, Failure> {
        let entry = self.workspace.entry(id).map_err(|error| internal(&error))?;
        Ok(Event::Entry(entry.map(Box::new)))
    }

    pub(super) fn cache_clean(&self, task: Option<&str>) -> Result<Event, Failure> {
        let (entries, bytes) = self.workspace.clean(task).map_err(|error| internal(&error))?;
        Ok(Event::Cleaned { entries, bytes })
    }
}
