//! Images made by hand, imported, and looked at through the kernel's own EROFS.

mod bad_input;
mod build;
mod look;
mod merge;
mod shelf;
mod sources;
