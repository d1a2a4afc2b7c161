//! What a device has for the cubes of a product.

use cubecl::client::Client;
use cubecl::ir::features::Plane;

/// How the sums of a line are added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Reduction {
    /// A line is a plane, whose units read each other's registers.
    Plane,
    /// Through shared memory.
    Shared,
}

/// What a device has for cubes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Machine {
    /// Multiprocessors, each of which works on some cubes at a time.
    pub(super) processors: usize,
    /// Bytes of shared memory that a cube may have.
    pub(super) shared: usize,
    /// Units of a cube, at most.
    pub(super) units: usize,
    /// Units of a line.
    pub(super) width: usize,
    pub(super) reduction: Reduction,
}

impl Machine {
    /// Multiprocessors, where a device does not tell.
    const PROCESSORS: u32 = 16;

    /// Units of a line that is no plane.
    const WIDTH: u32 = 32;

    pub(super) fn new(client: &Client) -> Self {
        let hardware = &client.properties().hardware;
        let plane = hardware.plane_size_max;
        // A plane's size must be known beforehand.
        let is_fixed = hardware.plane_size_min == plane && plane.is_power_of_two() && (4..=64).contains(&plane);
        let is_plane = is_fixed && client.features().plane.contains(Plane::Ops);
        let (width, reduction) = if is_plane { (plane, Reduction::Plane) } else { (Self::WIDTH, Reduction::Shared) };
        Self {
            processors: hardware.num_streaming_multiprocessors.unwrap_or(Self::PROCESSORS).max(1) as usize,
            shared: hardware.max_shared_memory_size,
            units: hardware.max_units_per_cube as usize,
            width: width as usize,
            reduction,
        }
    }
}
