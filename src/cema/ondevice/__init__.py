"""What device, cloud and benchmark compute alike, with numpy alone: preprocessing, selection, drift."""
