"""The functions the control plane serves: a project's, and those made by POST."""
