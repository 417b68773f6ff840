"""The writing side of MLflow: what a run did, kept so that no crash and no outage loses or doubles anything.

    journal     metrics on disk, appended by whoever trains; imports nothing heavy
    lineage     parameters and tags as plain strings
    connection  one tracking server, with patience
    operations  single steps on MLflow that may be repeated
    stages      the nested run of a stage, fed from its journal
    courier     the thread that carries live curves and progress
    runs        the parent run of a request: what the pipeline uses

Metrics go to the journal in the stage's directory first and from there to MLflow. Training therefore never
waits for a server, and what a server missed is sent when it is back or by the next attempt.
"""
