"""A strict stand-in for the parts of AWS that a Canvas run needs, as a process of its own on loopback.

It stands aside: it uses forecasters and domain, only the command line starts it, and nothing else imports it.

    server ─┬─ service ── constraints, automl, models, transform, listing     SageMaker, our own
            ├─ moto                                                           S3, STS, IAM
            └─ control ── clock, faults, journal, costs                       what a test steers and reads

What is AWS's rule, and what is our choice where AWS says nothing, is told in docs/aws/emulator.md.
"""
