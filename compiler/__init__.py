"""The target-independent part: IR, operators, frontends, artifact, measurement, report and the library
functions."""
