//! Generated workspaces: a base, layers over it, and a native directory with the merged content.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD};
use tempfile::TempDir;
use uuid::Uuid;
use vout::archive::{Archive, Extent, FileContent, FileSource, Item, Meta, Packer, Source};
use vout::base::{Base, timestamps};
use vout::content::ContentHashes;
use vout::digest::Digest;
use vout::fs::{SetTime, Timestamp};
use vout::index::{Index, TaskId, WorkspaceId};
use vout::live::Live;
use vout::materialise::Materialiser;
use vout::path::RelPathBuf;
use vout::store::Store;
use vout::touched::Touched;
use vout::tree::layer::LayerParts;
use vout::tree::{Layer, Tree};
use vout::view::{View, ViewOptions};

use crate::native::Native;
use crate::ops::{self, Data};

/// What layers add to recorded times.
const SHIFT_SECS: i64 = 5;

/// What a workspace holds before the first operation.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Made in order; what contradicts an earlier one is left out.
    pub(crate) base: Vec<(String, Made)>,
    /// Oldest first.
    pub(crate) layers: Vec<Vec<(String, Made)>>,
}

#[derive(Debug, Clone)]
pub(crate) enum Made {
    Dir(u32),
    File(Data, u32),
    Symlink(String),
    /// Another name of an earlier file.
    Link(String),
    /// Only in layers.
    Absent,
}

pub(crate) fn plan() -> impl Strategy<Value = Plan> {
    let made = || {
        prop_oneof![
            3 => ops::dir_mode().prop_map(Made::Dir),
            6 => (ops::data(), ops::file_mode()).prop_map(|(data, mode)| Made::File(data, mode)),
            1 => ops::target().prop_map(Made::Symlink),
            2 => ops::path().prop_map(Made::Link),
        ]
    };
    let in_layer = prop_oneof![5 => made(), 1 => Just(Made::Absent)];
    let base = prop::collection::vec((ops::path(), made()), 0..14);
    let layers = prop::collection::vec(prop::collection::vec((ops::path(), in_layer), 1..8), 0..3);
    (base, layers).prop_map(|(base, layers)| Plan { base, layers })
}

pub(crate) struct World {
    _dir: TempDir,
    pub(crate) tree: Arc<Tree>,
    pub(crate) store: Arc<Store>,
    pub(crate) staging: Arc<OwnedFd>,
    pub(crate) native: Native,
    pub(crate) base_path: PathBuf,
    pub(crate) staging_path: PathBuf,
}

struct Bytes(Vec<u8>);

impl FileSource for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn open(&self) -> io::Result<Box<dyn FileContent>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}

impl FileContent for Bytes {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let left = self.0.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let length = left.len().min(buffer.len());
        buffer[..length].copy_from_slice(&left[..length]);
        Ok(length)
    }

    fn data_extents(&self) -> io::Result<Option<Vec<Extent>>> {
        Ok(None)
    }
}

fn time(number: usize, shift_secs: i64) -> Timestamp {
    Timestamp { secs: 1_000_000 + 1000 * i64::try_from(number).unwrap() + shift_secs, nanos: 5 }
}

fn set_time(path: &Path, to: Timestamp) {
    let times = timestamps(None, Some(SetTime::At(to)));
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|meta| meta.is_dir())
}

fn remove(path: &Path) {
    if is_dir(path) {
        fs::remove_dir_all(path).unwrap();
    } else if path.symlink_metadata().is_ok() {
        fs::remove_file(path).unwrap();
    }
}

/// Makes one object where nothing is but maybe a directory.
fn make(root: &Path, at: &Path, made: &Made, mtime: Timestamp) {
    match made {
        Made::Dir(mode) => {
            fs::create_dir_all(at).unwrap();
            fs::set_permissions(at, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Made::File(data, mode) => {
            fs::write(at, data.bytes()).unwrap();
            fs::set_permissions(at, fs::Permissions::from_mode(*mode)).unwrap();
        }
        Made::Symlink(target) => symlink(target, at).unwrap(),
        Made::Link(other) => return fs::hard_link(root.join(other), at).unwrap(),
        Made::Absent => return,
    }
    set_time(at, mtime);
}

/// Makes the directories above `at`, in place of anything else.
fn make_parents(root: &Path, path: &str, replace: bool) -> bool {
    let mut at = root.to_owned();
    let parents: Vec<_> = path.split('/').collect();
    for name in &parents[..parents.len() - 1] {
        at.push(name);
        if !is_dir(&at) {
            if at.symlink_metadata().is_ok() {
                if !replace {
                    return false;
                }
                remove(&at);
            }
            fs::create_dir(&at).unwrap();
            fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    true
}

fn make_base(root: &Path, plan: &Plan) {
    for (number, (path, made)) in plan.base.iter().enumerate() {
        let at = root.join(path);
        if at.symlink_metadata().is_ok() || !make_parents(root, path, false) {
            continue;
        }
        if let Made::Link(other) = made
            && !root.join(other).symlink_metadata().is_ok_and(|meta| meta.is_file())
        {
            continue;
        }
        make(root, &at, made, time(number, 0));
    }
}

/// Leaves out what contradicts earlier members of a layer.
fn consistent(layer: &[(String, Made)]) -> BTreeMap<String, (usize, Made)> {
    let mut kept: BTreeMap<String, (usize, Made)> = BTreeMap::new();
    for (number, (path, made)) in layer.iter().enumerate() {
        let below = |inner: &str, outer: &str| inner.starts_with(&format!("{outer}/"));
        let clashes = kept.iter().any(|(known, (_, other))| {
            known == path
                || (below(path, known) && !matches!(other, Made::Dir(_)))
                || (below(known, path) && !matches!(made, Made::Dir(_)))
        });
        let dangles = match made {
            Made::Link(other) => !matches!(kept.get(other), Some((_, Made::File(..)))),
            _ => false,
        };
        if !clashes && !dangles {
            kept.insert(path.clone(), (number, made.clone()));
        }
    }
    kept
}

/// Says what a layer means, without any cleverness.
fn apply_layer(root: &Path, layer: &BTreeMap<String, (usize, Made)>) {
    for (path, (_, made)) in layer {
        if matches!(made, Made::Absent) && make_parents_exist(root, path) {
            remove(&root.join(path));
        }
    }
    // Links last: what they link to must be there.
    for links in [false, true] {
        for (path, (number, made)) in layer {
            if matches!(made, Made::Absent) || matches!(made, Made::Link(_)) != links {
                continue;
            }
            make_parents(root, path, true);
            let at = root.join(path);
            if !(matches!(made, Made::Dir(_)) && is_dir(&at)) {
                remove(&at);
            }
            make(root, &at, made, time(*number, SHIFT_SECS));
        }
    }
}

fn make_parents_exist(root: &Path, path: &str) -> bool {
    let parents = Path::new(path).ancestors().skip(1);
    parents.into_iter().all(|parent| is_dir(&root.join(parent)))
}

fn pack(at: &Path, layer: &BTreeMap<String, (usize, Made)>) -> Archive {
    let (uid, gid) = Native::owner();
    let items = layer.iter().map(|(path, (number, made))| {
        let mode = match made {
            Made::Dir(mode) | Made::File(_, mode) => *mode,
            _ => 0o777,
        };
        let meta =
            Meta { mode, uid: uid.as_raw(), gid: gid.as_raw(), mtime: time(*number, 0), ..Meta::default() };
        let source = match made {
            Made::Dir(_) => Source::Dir,
            Made::File(data, _) => Source::File(Box::new(Bytes(data.bytes()))),
            Made::Symlink(target) => Source::Symlink(target.into()),
            Made::Link(other) => Source::HardLink(RelPathBuf::new(other.as_str()).unwrap()),
            Made::Absent => Source::Absent,
        };
        Item { path: RelPathBuf::new(path.as_str()).unwrap(), meta, source }
    });
    Packer::default().pack(&File::create(at).unwrap(), items.collect(), &|_, _| {}).unwrap();
    Archive::open(File::open(at).unwrap(), at.to_owned()).unwrap()
}

pub(crate) fn owner(number: usize) -> TaskId {
    TaskId(Digest::of(&[u8::try_from(number).unwrap()]))
}

impl World {
    pub(crate) fn new(plan: &Plan) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["base", "native", "staging"] {
            fs::create_dir(at(name)).unwrap();
        }
        make_base(&at("base"), plan);
        make_base(&at("native"), plan);
        let base = Arc::new(Base::new(File::open(at("base")).unwrap().into(), Vec::new()).unwrap());
        let tree = Arc::new(Tree::new(base));
        for (number, layer) in plan.layers.iter().enumerate() {
            let layer = consistent(layer);
            apply_layer(&at("native"), &layer);
            let archive = pack(&at(&number.to_string()), &layer);
            tree.attach(Arc::new(Layer::new(LayerParts {
                owner: owner(number),
                task_name: number.to_string(),
                entry: Uuid::from_u128(number as u128),
                archive_id: Uuid::from_u128(number as u128),
                archive: Arc::new(archive),
                shift_ns: SHIFT_SECS * 1_000_000_000,
                stale: None,
                punched: BTreeMap::new(),
            })));
        }
        let native = Native::new(File::open(at("native")).unwrap().into());
        Self {
            tree,
            store: Arc::new(Store::open(&at("store")).unwrap().0),
            staging: Arc::new(File::open(at("staging")).unwrap().into()),
            native,
            base_path: at("base"),
            staging_path: at("staging"),
            _dir: dir,
        }
    }

    pub(crate) fn view(&self, passthrough: bool) -> Arc<View> {
        Arc::new(View::new(ViewOptions {
            tree: Arc::clone(&self.tree),
            store: Arc::clone(&self.store),
            staging: Arc::clone(&self.staging),
            without: None,
            passthrough,
            xattrs: true,
            tells_made: false,
        }))
    }

    pub(crate) fn live(&self, told_of_opens: bool) -> (Arc<Live>, Arc<Materialiser>) {
        let (index, _) = Index::open(self.store.dir(), self.store.path()).unwrap();
        let materialiser = Arc::new(Materialiser {
            tree: Arc::clone(&self.tree),
            index: Arc::new(index),
            workspace: WorkspaceId(Digest::of(b"workspace")),
            hashes: Arc::new(ContentHashes::default()),
        });
        let live =
            Live::new(Arc::clone(&materialiser), Arc::clone(&self.store), Arc::new(Touched::default()));
        (Arc::new(live.with_opens(told_of_opens)), materialiser)
    }

    /// Returns the base as an ordinary directory.
    pub(crate) fn base(&self) -> Native {
        Native::new(File::open(&self.base_path).unwrap().into())
    }
}
