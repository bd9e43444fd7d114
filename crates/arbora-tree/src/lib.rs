//! Trees over tokens.
