//! A small cache of what is dear to load.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Values by number, bounded by their total cost in bytes, least recently used ones dropped first.
///
/// # Guarantees
/// - Threads that ask for the same value at the same time load it once.
/// - What fails to load is not remembered: the next one tries again.
///
/// # Locking
/// A slot's lock is held while its value is loaded, which is what makes the others wait. The lock of
/// `slots` is taken alone or inside no other, and never held while loading.
pub(super) struct Cache<V> {
    slots: Mutex<Slots<V>>,
    bytes_max: usize,
}

struct Slots<V> {
    by_key: HashMap<u64, Slot<V>>,
    bytes: usize,
    clock: u64,
}

struct Slot<V> {
    value: Arc<Mutex<Option<Arc<V>>>>,
    /// 0 while the value is being loaded.
    cost_bytes: usize,
    used: u64,
}

impl<V> Cache<V> {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { slots: Mutex::new(Slots { by_key: HashMap::new(), bytes: 0, clock: 0 }), bytes_max }
    }

    /// Returns the value of `key`; `load` gives it and its cost in bytes where it is not here.
    pub(super) fn get<E>(&self, key: u64, load: impl FnOnce() -> Result<(V, usize), E>) -> Result<Arc<V>, E> {
        let slot = self.slot(key);
        let mut value = lock(&slot);
        if let Some(value) = &*value {
            return Ok(Arc::clone(value));
        }
        match load() {
            Ok((loaded, cost_bytes)) => {
                let loaded = Arc::new(loaded);
                *value = Some(Arc::clone(&loaded));
                drop(value);
                self.account(key, &slot, cost_bytes);
                Ok(loaded)
            }
            Err(error) => {
                drop(value);
                self.forget(key, &slot);
                Err(error)
            }
        }
    }

    fn slot(&self, key: u64) -> Arc<Mutex<Option<Arc<V>>>> {
        let mut slots = lock(&self.slots);
        slots.clock += 1;
        let used = slots.clock;
        let slot = slots.by_key.entry(key).or_insert_with(|| Slot {
            value: Arc::new(Mutex::new(None)),
            cost_bytes: 0,
            used,
        });
        slot.used = used;
        Arc::clone(&slot.value)
    }

    fn account(&self, key: u64, value: &Arc<Mutex<Option<Arc<V>>>>, cost_bytes: usize) {
        let mut slots = lock(&self.slots);
        match slots.by_key.get_mut(&key) {
            Some(slot) if Arc::ptr_eq(&slot.value, value) => slot.cost_bytes = cost_bytes,
            _ => return,
        }
        slots.bytes += cost_bytes;
        while slots.bytes > self.bytes_max {
            let idle = slots.by_key.iter().filter(|(other, slot)| **other != key && slot.cost_bytes > 0);
            let Some(oldest) = idle.min_by_key(|(_, slot)| slot.used).map(|(other, _)| *other) else {
                return;
            };
            if let Some(slot) = slots.by_key.remove(&oldest) {
                slots.bytes -= slot.cost_bytes;
            }
        }
    }

    fn forget(&self, key: u64, value: &Arc<Mutex<Option<Arc<V>>>>) {
        let mut slots = lock(&self.slots);
        let stale = slots
            .by_key
            .get(&key)
            .is_some_and(|slot| Arc::ptr_eq(&slot.value, value) && slot.cost_bytes == 0);
        if stale {
            slots.by_key.remove(&key);
        }
    }
}

/// A panic elsewhere leaves no half-changed value behind these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_used_within_its_limit() {
        let cache = Cache::new(30);
        let loads = std::cell::Cell::new(0);
        let get = |key| {
            let load = || {
                loads.set(loads.get() + 1);
                Ok::<_, ()>((key, 10))
            };
            assert_eq!(*cache.get(key, load).unwrap(), key);
        };
        [1, 2, 3, 1, 4].into_iter().for_each(get);
        assert_eq!(loads.get(), 4);
        [1, 3, 4].into_iter().for_each(get);
        assert_eq!(loads.get(), 4, "2 was used least recently");
        get(2);
        assert_eq!(loads.get(), 5);
    }

    #[test]
    fn concurrent_readers_load_once() {
        let cache = Cache::new(10);
        let loads = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let load = || {
                        loads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        Ok::<_, ()>((7, 1))
                    };
                    assert_eq!(*cache.get(0, load).unwrap(), 7);
                });
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn failure_is_not_remembered() {
        let cache = Cache::new(10);
        assert_eq!(cache.get(0, || Err::<(u8, usize), _>("no")), Err("no"));
        assert_eq!(*cache.get(0, || Ok::<_, ()>((1, 1))).unwrap(), 1);
    }
}
