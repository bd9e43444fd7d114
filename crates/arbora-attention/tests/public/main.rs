//! What the public interface does on the host: settings, costs, random draws, and the kernels of flex on several threads.

mod big_bird;
mod cpu_kernels;
mod dropout;
mod flops;
mod performer;
mod settings;
