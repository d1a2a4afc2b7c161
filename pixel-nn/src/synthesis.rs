//! When dense weights exist: never, or in a cache that obeys a budget.

use burn::module::{Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Tensor};
use pixel_core::backend::{PatternTensors, ReadyWeight};
use pixel_core::lru::Lru;
use pixel_core::synthesis::Arithmetic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// How a layer gets at its weights.
#[derive(Debug, Clone, Default)]
pub enum SynthesisMode {
    /// Weights are decoded in registers, product by product, and never stored: the least memory, and the fastest.
    /// Products may round activations, as [`Arithmetic::Integer`] says. The default.
    #[default]
    OnDemand,
    /// As [`OnDemand`](Self::OnDemand), everything in f32.
    OnDemandF32,
    /// The dense weight is kept in the cache while there is room: dense speed for the layers that fit. Training goes on
    /// demand all the same.
    Cached(WeightCache),
}

impl SynthesisMode {
    /// What products with patterns compute with.
    pub const fn arithmetic(&self) -> Arithmetic {
        match self {
            Self::OnDemand => Arithmetic::Integer,
            Self::OnDemandF32 | Self::Cached(_) => Arithmetic::F32,
        }
    }
}

/// Dense weights by the numbers of their slots.
type Weights = Mutex<Lru<u64, Tensor<2>>>;

/// Dense weights of several layers under one budget in bytes; the weight that was used least recently goes first.
///
/// Clones share the same cache. A weight leaves it when its layer is dropped, moved, trained or loaded anew.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use pixel_nn::{PIXELLinearConfig, SynthesisMode, WeightCache};
/// let (device, cache) = (Device::flex(), WeightCache::new(1 << 20));
/// let layer = PIXELLinearConfig::new(64, 32).init(&device).with_synthesis(SynthesisMode::Cached(cache.clone()));
/// layer.forward(Tensor::<2>::ones([1, 64], &device));
/// assert_eq!(cache.used_bytes(), 64 * 32 * 4);
/// drop(layer);
/// assert_eq!(cache.used_bytes(), 0);
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct WeightCache {
    weights: Arc<Weights>,
    budget: usize,
}

impl WeightCache {
    /// An empty cache of `budget_bytes`.
    pub fn new(budget_bytes: usize) -> Self {
        Self { weights: Arc::new(Mutex::new(Lru::new(budget_bytes))), budget: budget_bytes }
    }

    /// The budget.
    pub fn budget_bytes(&self) -> usize {
        self.budget
    }

    /// What the cached weights take, never more than the budget.
    pub fn used_bytes(&self) -> usize {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner).used()
    }

    /// The weight of `slot`, synthesised if it is not there. One beyond the budget is not kept.
    pub(crate) fn weight(&self, slot: &Slot, bytes: usize, synthesize: impl FnOnce() -> Tensor<2>) -> Tensor<2> {
        let found = self.weights.lock().unwrap_or_else(PoisonError::into_inner).get(&slot.0.id);
        if let Some(weight) = found {
            return weight;
        }
        // Not under the lock: other layers go on meanwhile.
        let weight = synthesize();
        slot.0.remember(&self.weights);
        self.weights.lock().unwrap_or_else(PoisonError::into_inner).insert(slot.0.id, weight.clone(), bytes);
        weight
    }
}

/// The identity of one state of a weight. Whatever may change the weight or its device gives it a new one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Slot(Arc<SlotState>);

#[derive(Debug)]
struct SlotState {
    id: u64,
    /// The caches in which the weight was put.
    caches: Mutex<Vec<Weak<Weights>>>,
    /// The weight as projections take it, once one has.
    ready: OnceLock<ReadyWeight>,
}

impl Slot {
    /// The weight as projections take it, made at the first call.
    pub(crate) fn ready(&self, tensors: impl FnOnce() -> PatternTensors) -> &ReadyWeight {
        self.0.ready.get_or_init(|| ReadyWeight::new(tensors()))
    }
}

impl SlotState {
    fn remember(&self, cache: &Arc<Weights>) {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let cache = Arc::downgrade(cache);
        if !caches.iter().any(|known| known.ptr_eq(&cache)) {
            caches.push(cache);
        }
    }
}

impl Default for SlotState {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), caches: Mutex::default(), ready: OnceLock::new() }
    }
}

impl Drop for SlotState {
    fn drop(&mut self) {
        let caches = std::mem::take(self.caches.get_mut().unwrap_or_else(PoisonError::into_inner));
        for cache in caches.iter().filter_map(Weak::upgrade) {
            cache.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        }
    }
}

impl Module for Slot {
    fn collect_devices(&self, devices: Devices) -> Devices {
        devices
    }

    fn fork(self, _device: &Device) -> Self {
        Self::default()
    }

    fn to_device(self, _device: &Device) -> Self {
        Self::default()
    }

    fn train(self) -> Self {
        Self::default()
    }

    fn valid(&self) -> Self {
        Self::default()
    }

    fn materialize(self) -> Self {
        self
    }

    fn visit<V: ModuleVisitor>(&self, _visitor: &mut V) {}

    fn map<M: ModuleMapper>(self, _mapper: &mut M) -> Self {
        Self::default()
    }
}

impl ModuleDisplayDefault for Slot {
    fn content(&self, content: Content) -> Option<Content> {
        Some(content)
    }
}

impl ModuleDisplay for Slot {}
